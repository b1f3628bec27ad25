"""What the JupyterLab panel reads from a kernel, in a subshell: the variables, and one value as parts."""

from __future__ import annotations

import base64
import types
from collections.abc import Mapping, Sized
from typing import Any

from jupyter_gemma.notebook.context import item_of
from jupyter_gemma.notebook.items import Limits, mime_of
from jupyter_gemma.types import AudioPart, ImagePart, Part, TextPart

OWN_NAMES = {"In", "Out", "exit", "quit", "open", "get_ipython"}
NO_DATA = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)


def variables(scope: Mapping[str, Any]) -> Any:
    """``[{"name", "type", "note"}, …]`` of the user's own variables, as a JSON display; ``note`` is a shape or size."""
    found = [  # another thread may add a variable meanwhile
        {"name": name, "type": type(value).__name__, "note": _size(value)}
        for name, value in list(scope.items())
        if not name.startswith("_") and name not in OWN_NAMES and not isinstance(value, NO_DATA)
    ]
    return _json(found)


def parts(value: object, rows: int, table_form: str) -> Any:
    """``value`` as ``[{"kind", "note", "text" or "mime" and base64 "data"}, …]``, as a JSON display.

    Args:
        value: what the user named.
        rows: of a table, sent cell by cell.
        table_form: "digest" or "columns", see :class:`~jupyter_gemma.types.ModelCard`.

    Raises:
        GemmaError: the value is of a known kind but cannot be used.
    """
    limits = Limits(rows=rows, table_form="columns" if table_form == "columns" else "digest")
    item = item_of(value, limits)
    return _json([_part(part, item.note) for part in item.parts])


def _part(part: Part, note: str) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"kind": "table" if note.startswith("table") else "text", "note": note, "text": part.text}
    if isinstance(part, ImagePart):
        return {"kind": "image", "note": note, **_file(part.data, "image/png")}
    if isinstance(part, AudioPart):
        return {"kind": "audio", "note": note, **_file(part.data, "audio/wav")}
    return {"kind": "text", "note": note, "text": f"A video of {len(part.frames)} frames, which the panel cannot send."}


def _file(data: bytes, usual: str) -> dict[str, str]:
    return {"mime": mime_of(data, usual), "data": base64.b64encode(data).decode()}


def _size(value: object) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return " × ".join(map(str, shape))
    if isinstance(value, bool | int | float):
        return str(value)[:20]
    return f"{len(value)} items" if isinstance(value, Sized) and not isinstance(value, type) else ""


def _json(value: object) -> Any:
    from IPython import display

    show: Any = display.JSON
    return show(value)
