"""Questions about code: the last exception, the next cell, documentation, the notebook as a whole."""

from __future__ import annotations

import ast
import difflib
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from IPython.core.error import UsageError

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Labelled
from jupyter_gemma.notebook.braces import free_names
from jupyter_gemma.notebook.context import fill
from jupyter_gemma.notebook.items import Item, cut, text_item
from jupyter_gemma.notebook.session import Session

MAX_VARIABLES = 8
MAX_NOTEBOOK = 30_000
_CELL_FILE = re.compile(r"(?:<ipython-input-(\d+)|Cell In\[(\d+)\]|/ipykernel_)")


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception and the cell that raised it."""

    error: BaseException
    cell: int
    source: str


def last_fault(session: Session) -> Fault:
    """The last exception of a cell, with that cell.

    Raises:
        UsageError: no cell has failed.
    """
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    if not isinstance(error, BaseException):
        raise UsageError("No cell has failed yet, so there is nothing to fix.")
    number = _cell_of(session, error)
    sources = dict(session.cells())
    if number not in sources:
        raise UsageError("The cell that failed is not in this session's history.")
    return Fault(error, number, sources[number].rstrip("\n"))


def _cell_of(session: Session, error: BaseException) -> int:
    """Number of the cell whose code stands first in the traceback; else of the last cell that ran."""
    names: Mapping[str, int] = getattr(session.shell.compile, "_filename_map", {})
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in names:
            return names[frame.filename]
    return max((number for number, _ in session.cells()), default=0)


def fix_question(session: Session, fault: Fault, words: str) -> list[Labelled]:
    """The exception, its cell and the variables that the cell names."""
    wanted = f" {words}" if words else ""
    return [
        ("", text_item("This notebook cell failed.\n")),
        (f"cell {fault.cell}", text_item(f"```python\n{fault.source}\n```\n", f"{_lines(fault.source)} lines")),
        (type(fault.error).__name__, text_item(f"{_trace_text(fault.error)}\n", "exception")),
        *_variables(session, fault.source),
        ("", text_item(f"\nCorrect it.{wanted} Answer with the whole corrected cell in one Python block.")),
    ]


def _trace_text(error: BaseException) -> str:
    return cut("".join(traceback.format_exception(error, limit=-8)).rstrip(), 6_000)


def _variables(session: Session, source: str) -> list[Labelled]:
    """What the names of ``source`` hold, as far as they are the user's own: no cell values, no pictures."""
    try:
        tree = ast.parse(session.shell.transform_cell(source))
    except SyntaxError:
        return []
    scope = session.shell.user_ns
    names = sorted(name for name in free_names(tree) if name in session.known(scope) and name not in ("Out", "_"))
    return [(name, text_item(f"{name}: {_kind(scope[name])}\n", _kind(scope[name]))) for name in names[:MAX_VARIABLES]]


def _kind(value: Any) -> str:
    """A few words on what a variable is; of frames the columns, of containers the length."""
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if hasattr(value, "columns") and hasattr(value, "dtypes"):
        columns = ", ".join(map(str, list(value.columns)[:30]))
        return f"{name} {getattr(value, 'shape', '')} with columns {columns}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{name} of shape {value.shape}, {value.dtype}"
    if isinstance(value, str | list | tuple | dict | set):
        return f"{name} of length {len(value)}"
    return name


def offer_fix(session: Session, fault: Fault, answer: Answer) -> None:
    """Show what the corrected cell changes, and put it into the next cell."""
    if not answer.code:
        return
    before, after = fault.source.splitlines(), answer.code.splitlines()
    lines = list(difflib.unified_diff(before, after, f"cell {fault.cell}", "corrected", lineterm="", n=2))
    sys.stdout.write("\n".join(lines or ["The corrected cell is the same."]) + "\n")
    session.offer(answer.code)


def code_question(session: Session, words: str, scope: Mapping[str, Any]) -> list[Labelled]:
    """What the next cell should do, with the objects that the words name and what variables there are.

    Raises:
        UsageError: there are no words.
    """
    if not words:
        raise UsageError("/code needs words: %gemma /code plot the mean of {df} by city")
    known = session.known(scope)
    there = [f"{name}: {_kind(scope[name])}" for name in sorted(known) if not name.startswith("_") and name != "Out"]
    listed = "\n".join(there[: 4 * MAX_VARIABLES])
    context = [("", text_item(f"Variables of this notebook:\n{listed}\n\n"))] if listed else []
    return [
        *context,
        ("", text_item("Write the next notebook cell. Answer with its code in one Python block.\n")),
        *fill(words, scope, known),
    ]


def explain_cell(session: Session) -> list[Labelled]:
    """The last cell that ran, to be explained."""
    number, source = _last_cell(session)
    return [
        (f"cell {number}", text_item(f"```python\n{source}\n```\n", f"{_lines(source)} lines")),
        ("", text_item("Explain what this notebook cell does.")),
    ]


def doc_question(session: Session, subject: Labelled | None) -> list[Labelled]:
    """An object, or the last cell, to be documented."""
    if subject is None:
        number, source = _last_cell(session)
        subject = (f"cell {number}", text_item(f"```python\n{source}\n```\n", f"{_lines(source)} lines"))
    words = "Write its documentation: what it does, its inputs with their types, what it gives, an example."
    return [subject, ("", text_item(f"\n{words}"))]


def summary_question(subject: Labelled) -> list[Labelled]:
    """An object to be summarised."""
    return [subject, ("", text_item("\nSummarise this in a few sentences."))]


def notebook_question(session: Session) -> list[Labelled]:
    """The cells that ran in this session, to be summarised."""
    cells = session.cells()
    if not cells:
        raise UsageError("No cell has run yet.")
    text = "\n\n".join(f"# Cell {number}\n{source.rstrip()}" for number, source in cells)
    item = Item(text_item(cut(text, MAX_NOTEBOOK)).parts, f"{len(cells)} cells")
    words = "Summarise this notebook: its purpose, its data, its steps, its results, in at most ten lines."
    return [("this notebook", item), ("", text_item(f"\n\n{words}"))]


def _last_cell(session: Session) -> tuple[int, str]:
    for number, source in reversed(session.cells()):
        if source.strip() and not source.lstrip().startswith(("%gemma", "%%gemma", "%load_ext")):
            return number, source.rstrip("\n")
    raise UsageError("No cell has run yet.")


def _lines(source: str) -> int:
    return len(source.splitlines())
