"""The pictures that cells showed, remembered on their way to the front end."""

from __future__ import annotations

import base64
from collections import OrderedDict
from typing import Any

from jupyter_gemma.notebook.bundle import METADATA_KEY

KINDS = ("image/png", "image/jpeg", "image/svg+xml")
MAX_PICTURES = 32


class Shown:
    """The last picture of each of the last cells that showed one.

    Register it as a hook of IPython's display publisher: it looks at each message and lets it go on.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._pictures: OrderedDict[int, bytes] = OrderedDict()

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        """Look at a message on its way to the front end; it goes on unchanged."""
        content = message.get("content", {})
        data = content.get("data", {})
        kind = next((kind for kind in KINDS if isinstance(data.get(kind), str)), "")
        if kind and METADATA_KEY not in content.get("metadata", {}):
            self._keep(data[kind].encode() if kind == "image/svg+xml" else base64.b64decode(data[kind]))
        return message

    def _keep(self, picture: bytes) -> None:
        cell = self._shell.execution_count
        self._pictures[cell] = picture
        self._pictures.move_to_end(cell)
        while len(self._pictures) > MAX_PICTURES:
            self._pictures.popitem(last=False)

    @property
    def newest(self) -> int:
        """Number of the last cell that showed a picture, -1 if none did."""
        return next(reversed(self._pictures), -1)

    def picture(self, cell: int | None = None) -> tuple[str, bytes] | None:
        """A label and the picture that ``cell`` (None: the last one) showed."""
        number = self.newest if cell is None else cell
        if number not in self._pictures:
            return None
        return f"the picture of cell {number}", self._pictures[number]
