"""Tables as bounded text: what a frame holds, in a size that does not grow with its rows.

pandas is only used through the frame that was handed in. The frame is never changed and never copied whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jupyter_gemma.notebook.items import Item, Limits, text_item

# Above these sizes a figure is taken from every n-th row, and the digest says so.
EXACT_NUMBERS = 20_000_000  # cells
EXACT_LABELS = 100_000  # cells
SAMPLE_ROWS = 5_000
CELL_CHARS = 40
TOP = 3


def from_frame(frame: Any, limits: Limits) -> Item:
    """A data frame as text, in the form that ``limits.table_form`` names."""
    write = _columns_form if limits.table_form == "columns" else _digest
    rows, columns = frame.shape
    return text_item(write(frame, limits), f"table {rows} × {columns}, {min(rows, _rows_sent(limits))} rows of cells")


def from_series(series: Any, limits: Limits) -> Item:
    """A series, as a frame of one column."""
    return from_frame(series.to_frame(), limits)


def _rows_sent(limits: Limits) -> int:
    return 0 if limits.table_form == "columns" else limits.rows


def _columns_form(frame: Any, limits: Limits) -> str:
    """``rows N``, then one line a column; the form the demo model was trained on (its README)."""
    described = min(frame.shape[1], limits.columns)
    return "\n".join([f"rows {len(frame)}", *(_column_line(frame, at, limits) for at in range(described))])


def _column_line(frame: Any, at: int, limits: Limits) -> str:
    name, column = _name(frame, at), frame.iloc[:, at]
    if not _is_number(column) or not column.notna().any():
        return f"{name}: text {_labels(column)[0].nunique()} unique"
    low, mean, high = (_whole(float(value)) for value in (column.min(), column.mean(), column.max()))
    return f"{name}: mean {mean} min {low} max {high}" if limits.rows else f"{name}: mean {mean}"


def _whole(value: float) -> str:
    return str(round(value)) if math.isfinite(value) else str(value)


def _digest(frame: Any, limits: Limits) -> str:
    rows, columns = frame.shape
    described = min(columns, limits.columns)
    lines = [f"Table of {rows} rows and {columns} columns{_index_words(frame)}."]
    lines += [_describe(frame, at, limits) for at in range(described)]
    if columns > described:
        lines.append(f"… and {columns - described} more columns")
    if limits.rows and rows:
        lines += _head(frame.iloc[: limits.rows, :described], rows)
    return "\n".join(lines)


def _index_words(frame: Any) -> str:
    name = frame.index.name
    return f", indexed by {name} ({frame.index.dtype})" if name is not None else ""


def _name(frame: Any, at: int) -> str:
    label = frame.columns[at]
    return " / ".join(map(str, label)) if isinstance(label, tuple) else str(label)


def _describe(frame: Any, at: int, limits: Limits) -> str:
    """``- name (dtype): facts`` for one column."""
    column = frame.iloc[:, at]
    facts = [f"{nulls} missing"] if (nulls := int(column.isna().sum())) else []
    if nulls == len(column):
        facts = ["all missing"] if len(column) else ["empty"]
    else:
        facts += _facts_writer(column)(column, limits)
    return f"- {_name(frame, at)} ({column.dtype}): {', '.join(facts)}"


def _facts_writer(column: Any) -> Callable[[Any, Limits], list[str]]:
    if _is_number(column):
        return _number_facts
    return _date_facts if _types().is_datetime64_any_dtype(column.dtype) else _label_facts


def _number_facts(column: Any, limits: Limits) -> list[str]:
    with sys.modules["numpy"].errstate(invalid="ignore"):  # infinities have no spread
        return _number_words(column, limits)


def _number_words(column: Any, limits: Limits) -> list[str]:
    column, where = _sample(column, EXACT_NUMBERS)
    facts = [f"mean {_short(column.mean())}", f"std {_short(column.std())}"]
    if not limits.rows:
        return [*facts, *where]
    quantiles = _sample(column, SAMPLE_ROWS)[0].quantile([0.25, 0.5, 0.75])
    around = " ".join(_short(value) for value in quantiles)
    return [f"{_short(column.min())} to {_short(column.max())}", *facts, f"quartiles {around}", *where]


def _date_facts(column: Any, limits: Limits) -> list[str]:
    return [f"{column.min()} to {column.max()}"] if limits.rows else []


def _label_facts(column: Any, limits: Limits) -> list[str]:
    column, where = _labels(column)
    counts = column.value_counts()
    facts = [f"{len(counts)} unique", *where]
    if not limits.rows:
        return facts
    top = [f"{_cell(label)} ({count})" for label, count in zip(counts.index[:TOP], counts.iloc[:TOP], strict=True)]
    return [*facts, f"most often {', '.join(top)}"]


def _labels(column: Any) -> tuple[Any, list[str]]:
    """Values that can be counted; lists and dicts inside cells are counted by their text."""
    column, where = _sample(column, EXACT_LABELS)
    try:
        column.nunique()
    except TypeError:
        column = column.dropna().astype(str)
    return column, where


def _sample(column: Any, exact: int) -> tuple[Any, list[str]]:
    """``column``, or every n-th row of it and the words that say so."""
    if len(column) <= exact:
        return column, []
    step = -(-len(column) // SAMPLE_ROWS)
    return column.iloc[::step], [f"from every {step}th row"]


def _head(head: Any, rows: int) -> list[str]:
    table = [[_name(head, at) for at in range(head.shape[1])]]
    table += [[_cell(value) for value in row] for row in head.itertuples(index=False, name=None)]
    return [f"First {len(head)} of {rows} rows:", *(_row(cells) for cells in table)]


def _row(cells: Sequence[str]) -> str:
    return " | ".join(cells)


def _cell(value: object) -> str:
    text = " ".join(str(_short(value) if isinstance(value, float) else value).split())
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _is_number(column: Any) -> bool:
    types = _types()
    is_number = types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)
    return is_number and not types.is_complex_dtype(column.dtype)


def _types() -> Any:
    """pandas' questions about dtypes, from the pandas that made the frame."""
    return sys.modules["pandas"].api.types
