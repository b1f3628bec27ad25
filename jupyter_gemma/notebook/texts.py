"""Values that go as text: collections, exceptions, code, modules, files; each bounded."""

from __future__ import annotations

import inspect
import json
import pprint
import traceback
from collections.abc import Mapping
from typing import Any

from jupyter_gemma.errors import RequestError
from jupyter_gemma.notebook.items import Item, Limits, cut, text_item

MAX_NAMES = 60
# Longer collections are shown to here before they are printed, so that printing costs no seconds.
MAX_ELEMENTS = 2_000


def from_text(value: str, limits: Limits) -> Item:
    """A string, whole: the user wrote or read it."""
    return text_item(value, f"text, {len(value)} characters")


def from_anything(value: object, limits: Limits) -> Item:
    """The string that a value makes of itself."""
    return text_item(cut(str(value), limits.chars), type(value).__name__)


def from_collection(value: Any, limits: Limits) -> Item:
    """A list, tuple, dict or set, printed in lines."""
    some = value
    if len(value) > MAX_ELEMENTS and type(value) in (list, tuple, dict):
        some = dict(list(value.items())[:MAX_ELEMENTS]) if isinstance(value, dict) else value[:MAX_ELEMENTS]
    text = cut(pprint.pformat(some, width=100, sort_dicts=False), limits.chars)
    more = f"\n… {len(value)} elements, {len(value) - len(some)} more" if len(some) < len(value) else ""
    return text_item(text + more, f"{type(value).__name__} of {len(value)}" if more else type(value).__name__)


def from_error(value: BaseException, limits: Limits) -> Item:
    """An exception with its traceback."""
    return text_item(cut("".join(traceback.format_exception(value)), limits.chars), type(value).__name__)


def from_source(value: Any, limits: Limits) -> Item:
    """A function, method or class as its source, where there is one."""
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):
        return from_anything(value, limits)
    return text_item(cut(source, limits.chars), f"source of {value.__name__}")


def from_module(value: Any, limits: Limits) -> Item:
    """A module: its documentation, and its public names with the first line of theirs."""
    doc = cut(inspect.getdoc(value) or "", limits.chars // 2)
    names = [name for name in getattr(value, "__all__", None) or dir(value) if not name.startswith("_")]
    listed = [_name_line(value, name) for name in names[:MAX_NAMES]]
    more = [f"… {len(names) - MAX_NAMES} more names"] if len(names) > MAX_NAMES else []
    text = "\n".join([f"Module {value.__name__}", doc, *listed, *more])
    return text_item(cut(text, limits.chars), f"module {value.__name__}")


def _name_line(module: Any, name: str) -> str:
    member = getattr(module, name, None)
    about = (inspect.getdoc(member) or "").partition("\n")[0] if callable(member) else ""
    return f"- {name}: {about[:100]}" if about else f"- {name}"


def from_array(value: Any, limits: Limits) -> Item:
    """A numpy array that is no picture: shape and type, and unless ``rows`` is 0 its range and beginning."""
    head = f"array of shape {value.shape}, {value.dtype}"
    note = f"array {' × '.join(map(str, value.shape))}"
    if not limits.rows or not value.size:
        return text_item(head, note)
    if value.dtype.kind in "iuf":
        head += f", {value.min():.6g} to {value.max():.6g}, mean {value.mean():.6g}"
    return text_item(cut(f"{head}\n{value!r}", limits.chars), note)


def from_text_file(path: Any, limits: Limits) -> Item | None:
    """A file of text or a notebook; None if it is neither, or not there.

    Raises:
        RequestError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(4 * limits.chars + 1)
            size = path.stat().st_size
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if path.suffix.lower() == ".ipynb":
        return _from_notebook(path, limits)
    text = data.decode("utf-8", "ignore")
    if b"\0" in data or len(text.encode()) < 0.9 * len(data):
        return None
    cut_text = cut(text, limits.chars) if size <= len(data) else f"{text[: limits.chars]}\n… of {size} bytes"
    return text_item(cut_text, f"file {path.name}, {size} bytes")


def _from_notebook(path: Any, limits: Limits) -> Item:
    """The cells of a notebook file with their text outputs; pictures in it are only named."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        texts = [_cell_text(number, cell) for number, cell in enumerate(cells, start=1)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(f"{path} is no notebook: {error!r}.", "Check the file.") from error
    return text_item(cut("\n\n".join(texts), limits.chars), f"notebook {path.name}, {len(cells)} cells")


def _cell_text(number: int, cell: Mapping[str, Any]) -> str:
    outputs = [text for output in cell.get("outputs", []) if (text := _output_text(output))]
    return "\n".join([f"# Cell {number} ({cell['cell_type']})", joined(cell["source"]), *outputs])


def _output_text(output: Mapping[str, Any]) -> str:
    if output.get("output_type") == "error":
        return f"Error: {output.get('ename')}: {output.get('evalue')}"
    data = output.get("data", {})
    text = joined(output.get("text") or data.get("text/plain") or "")
    return f"Output: {cut(text.strip(), 1_000)}" if text.strip() else ""


def joined(source: Any) -> str:
    """Text of a notebook file, which may stand there as a list of lines."""
    return source if isinstance(source, str) else "".join(source)
