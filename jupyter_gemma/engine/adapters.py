"""The adapters that requests may name: each is read when it is first asked for, and stays with the model."""

from __future__ import annotations

import threading
from pathlib import Path

from jupyter_gemma.errors import BadOption
from jupyter_gemma.model.adapter import ADAPTER_WEIGHTS, attach, read_adapter
from jupyter_gemma.model.decoder import Gemma

PLAIN = "none"


class Shelf:
    """Adapters of one model.

    Args:
        folder: has a folder for each adapter, which a request can name; None: there are none.
        default: of requests that name none: a name in ``folder``, the folder of an adapter, or "".
    """

    def __init__(self, model: Gemma, folder: Path | None, default: str = "") -> None:
        self._model = model
        self._folder = folder
        self._default = default
        self._attached: set[str] = set()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """What a request can name."""
        found = self._folder.glob(f"*/{ADAPTER_WEIGHTS}") if self._folder else ()
        return sorted(path.parent.name for path in found)

    def take(self, wanted: str) -> str:
        """What rows of a pass must name to be computed with adapter ``wanted``; "" for the plain model.

        An adapter whose file has changed is read anew, and another one to the model.

        Raises:
            BadOption: there is no such adapter. BadCheckpoint: it does not fit the model.
        """
        if wanted == PLAIN or not (wanted or self._default):
            return ""
        folder = self._find(wanted) if wanted else self._default_folder()
        key = f"{folder} {(folder / ADAPTER_WEIGHTS).stat().st_mtime_ns}"
        with self._lock:
            if key not in self._attached:
                adapter = read_adapter(folder, self._model.config)
                attach(self._model, self._model.routing, key, adapter, self._model.norm.weight)
                self._attached.add(key)
        return key

    def _find(self, name: str) -> Path:
        if self._folder is None or name not in self.names():
            known = ", ".join([*self.names(), PLAIN])
            raise BadOption(f"There is no adapter {name!r} here.", f"There are: {known}.")
        return self._folder / name

    def _default_folder(self) -> Path:
        given = Path(self._default).expanduser()
        return given if (given / ADAPTER_WEIGHTS).is_file() else self._find(self._default)
