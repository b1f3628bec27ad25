"""Tables as bounded text: what a frame holds, in a size that does not grow with its rows.

pandas is only used through the frame that was handed in. The frame is never changed and never copied whole.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_gemma.notebook.items import Item, Limits, text_item, tokens_of

# Above these sizes, in cells of all columns described, a figure is taken from every n-th row, and the digest says so.
EXACT_EXTENTS = 40_000_000  # smallest, largest, missing
EXACT_MEANS = 5_000_000
EXACT_LABELS = 500_000
SAMPLE_ROWS = 5_000
CELL_CHARS = 40
NAME_CHARS = 80
TOP = 3
# The share of the token budget that columns may take; the rest is for correlations and rows.
COLUMNS_SHARE = 0.7
# Correlations are looked for among the first number columns, and named from this strength on.
CORRELATED = 20
STRONG = 0.7
FEWEST_CORRELATED = 10


@dataclass(frozen=True, slots=True)
class Table:
    """A pandas frame and what it stands for: ``rows`` of a whole, of which it is ``sampled`` ("every 7th row").

    ``dtypes`` name the columns' types where the whole is no pandas frame. ``head`` is what it begins with.
    """

    frame: Any
    rows: int
    columns: int
    sampled: str = ""
    dtypes: tuple[str, ...] = ()
    head: str = ""


def from_frame(frame: Any, limits: Limits) -> Item:
    """A pandas data frame as text, in the form that ``limits.table_form`` names."""
    return describe(Table(frame, *frame.shape), limits)


def from_series(series: Any, limits: Limits) -> Item:
    """A series, as a frame of one column."""
    return from_frame(series.to_frame(), limits)


def from_groups(groups: Any, limits: Limits) -> Item:
    """A GroupBy: what it groups by, its largest groups, and the frame below it."""
    frame = groups.obj if hasattr(groups.obj, "columns") else groups.obj.to_frame()
    names = getattr(getattr(groups, "_grouper", None), "names", [])
    keys = ", ".join(str(name) for name in names if name is not None)
    words = f"Grouped{f' by {keys}' if keys else ''} into {groups.ngroups} groups."
    if limits.rows:
        largest = groups.size().nlargest(limits.rows)
        sizes = ", ".join(f"{_cell(label)} ({size})" for label, size in largest.items())
        words += f" Largest: {sizes}." if sizes else ""
    return describe(Table(frame, len(frame), frame.shape[1], head=words), limits)


def describe(table: Table, limits: Limits) -> Item:
    """The text of ``table``, and in the note how much of it that is."""
    if limits.table_form == "columns":
        text, columns = _columns_form(table, limits)
        sent = f"figures of {columns} columns" if limits.rows else "0 rows of cells"
    else:
        text, rows = _digest(table, limits)
        sent = f"{rows} rows of cells"
    return text_item(text, f"table {table.rows} × {table.columns}, {sent}")


# -- the demo model's form ---------------------------------------------------------------------------------------


def _columns_form(table: Table, limits: Limits) -> tuple[str, int]:
    """``rows N``, then one line a column, and their number; the form the demo model was trained on (its README)."""
    described = min(table.frame.shape[1], limits.columns)
    lines = _within((_column_line(table.frame, at, limits, described) for at in range(described)), limits.tokens)
    return "\n".join([f"rows {table.rows}", *lines]), len(lines)


def _column_line(frame: Any, at: int, limits: Limits, described: int) -> str:
    name, column = _name(frame, at), _sample(frame.iloc[:, at], EXACT_EXTENTS // described)[0]
    if not is_number(column) or not column.notna().any():
        return f"{name}: text {_labels(column, described)[0].nunique()} unique"
    low, mean, high = (_whole(float(value)) for value in (column.min(), column.mean(), column.max()))
    if limits.rows:
        return f"{name}: mean {mean} min {low} max {high}"
    return f"{name}: number" if _reveals(column, mean) else f"{name}: mean {mean}"


def _whole(value: float) -> str:
    return str(round(value)) if math.isfinite(value) else str(value)


# -- the digest --------------------------------------------------------------------------------------------------


def _digest(table: Table, limits: Limits) -> tuple[str, int]:
    """What stands in a table, and the number of rows that are given cell by cell."""
    frame = table.frame
    opening = [table.head] if table.head else []
    opening += [f"Table of {table.rows} rows and {table.columns} columns{_index_words(frame)}."]
    opening += [f"Figures are from {table.sampled}."] if table.sampled else []
    described = min(frame.shape[1], limits.columns)
    lines = _within((_describe(table, at, limits, described) for at in range(described)), COLUMNS_SHARE * limits.tokens)
    more = [f"… and {table.columns - len(lines)} more columns"] if table.columns > len(lines) else []
    text = [*opening, *lines, *more]
    head: list[str] = []
    if limits.rows and table.rows:
        text += _correlations(frame, len(lines))
        left = limits.tokens - tokens_of("\n".join(text))
        head = _head(frame.iloc[: limits.rows, : len(lines)], table.rows, left)
    return "\n".join([*text, *head]), len(head[2:])  # below a title and the names


def _within(lines: Iterable[str], tokens: float) -> list[str]:
    """As many of ``lines`` as the budget allows."""
    kept: list[str] = []
    for line in lines:
        tokens -= tokens_of(line) + 1
        if tokens < 0:
            break
        kept.append(line)
    return kept


def _index_words(frame: Any) -> str:
    names = [str(name) for name in frame.index.names if name is not None]
    return f", indexed by {', '.join(names)} ({frame.index.dtype})"[:NAME_CHARS] if names else ""


def _name(frame: Any, at: int) -> str:
    label = frame.columns[at]
    name = " / ".join(map(str, label)) if isinstance(label, tuple) else str(label)
    name = " ".join(name.split())
    return name if len(name) <= NAME_CHARS else f"{name[: NAME_CHARS - 1]}…"


def _describe(table: Table, at: int, limits: Limits, described: int) -> str:
    """``- name (dtype): facts`` for one column of those ``described``."""
    column, where = _sample(table.frame.iloc[:, at], EXACT_EXTENTS // described)
    dtype = table.dtypes[at] if table.dtypes else str(column.dtype)
    facts = [f"{nulls} missing"] if (nulls := int(column.isna().sum())) else []
    if nulls == len(column):
        facts = ["all missing"] if len(column) else ["empty"]
    else:
        facts += _facts_writer(column)(column, limits, described)
    facts += [f"figures from {where}"] if where else []
    return f"- {_name(table.frame, at)} ({dtype[:NAME_CHARS]}): {', '.join(facts)}".removesuffix(": ")


def _facts_writer(column: Any) -> Callable[[Any, Limits, int], list[str]]:
    if is_number(column):
        return _number_facts
    return _date_facts if _types().is_datetime64_any_dtype(column.dtype) else _label_facts


def _number_facts(column: Any, limits: Limits, described: int) -> list[str]:
    with sys.modules["numpy"].errstate(invalid="ignore"):  # infinities have no spread
        return _number_words(column, limits, described)


def _number_words(column: Any, limits: Limits, described: int) -> list[str]:
    sample, where = _sample(column, EXACT_MEANS // described)
    mean, deviation = _short(sample.mean()), _short(sample.std())
    from_where = f" (from {where})" if where else ""
    if not limits.rows:
        figures = {"mean": mean, "std": deviation}
        return [f"{name} {value}{from_where}" for name, value in figures.items() if not _reveals(column, value)]
    quantiles = _sample(sample, SAMPLE_ROWS)[0].quantile([0.25, 0.5, 0.75])
    around = " ".join(_short(value) for value in quantiles)
    extent = f"{_short(column.min())} to {_short(column.max())}"
    return [extent, f"mean {mean}", f"std {deviation}", f"quartiles {around}{from_where}"]


def _reveals(column: Any, figure: str) -> bool:
    """Whether ``figure``, as it is written, is what a cell holds: with ``rows=0`` it is then left out."""
    value = float(figure)
    if not math.isfinite(value):
        return True
    near = abs(value) * 1e-5 + (0.5 if "." not in figure and "e" not in figure else 0)
    return bool(((column >= value - near) & (column <= value + near)).any())


def _date_facts(column: Any, limits: Limits, described: int) -> list[str]:
    if not limits.rows:
        return []
    first, last = column.min(), column.max()
    return [f"{first} to {last}", f"spanning {(last - first).days} days"]


def _label_facts(column: Any, limits: Limits, described: int) -> list[str]:
    column, where = _labels(column, described)
    counts = column.value_counts()
    from_where = f" (from {where})" if where else ""
    facts = [f"{len(counts)} unique{from_where}"]
    if not limits.rows:
        return facts
    top = [f"{_cell(label)} ({count})" for label, count in zip(counts.index[:TOP], counts.iloc[:TOP], strict=True)]
    return [*facts, f"most often {', '.join(top)}"]


def _labels(column: Any, described: int) -> tuple[Any, str]:
    """Values that can be counted; lists and dicts inside cells are counted by their text."""
    column, where = _sample(column, EXACT_LABELS // described)
    try:
        column.nunique()
    except (TypeError, ValueError):  # ValueError: arrays inside cells
        column = column.dropna().astype(str)
    return column, where


def _sample(column: Any, exact: int) -> tuple[Any, str]:
    """``column``, or every n-th row of it and the words that say so."""
    if len(column) <= max(exact, SAMPLE_ROWS):
        return column, ""
    step = -(-len(column) // SAMPLE_ROWS)
    return column.iloc[::step], f"every {step}th row"


def _correlations(frame: Any, described: int) -> list[str]:
    """The strongest correlations between number columns, if any is strong."""
    numbers = [at for at in range(described) if is_number(frame.iloc[:, at])][:CORRELATED]
    if len(numbers) < 2 or len(frame) < FEWEST_CORRELATED:
        return []
    sample = frame.iloc[:: -(-len(frame) // SAMPLE_ROWS), numbers].set_axis(range(len(numbers)), axis=1)
    with sys.modules["numpy"].errstate(all="ignore"):  # a constant column has none
        table = sample.corr(min_periods=FEWEST_CORRELATED).to_numpy()
    pairs = [(table[a, b], a, b) for a in range(len(numbers)) for b in range(a) if abs(table[a, b]) >= STRONG]
    pairs.sort(key=lambda pair: -abs(pair[0]))
    words = [f"{_name(frame, numbers[b])} and {_name(frame, numbers[a])} {value:.2f}" for value, a, b in pairs[:TOP]]
    return [f"Correlations: {', '.join(words)}"] if words else []


def _head(head: Any, rows: int, tokens: float) -> list[str]:
    if not len(head):
        return []
    table = [[_name(head, at) for at in range(head.shape[1])]]
    table += [[_cell(value) for value in row] for row in head.itertuples(index=False, name=None)]
    title = f"First {len(head)} of {rows} rows:"
    kept = _within(map(_row, table), tokens - tokens_of(title) - 2)
    if len(kept) < 2:
        return []
    return [f"First {len(kept) - 1} of {rows} rows:", *kept]


def _row(cells: Sequence[str]) -> str:
    return " | ".join(cells)


def _cell(value: object) -> str:
    text = str(_short(value) if isinstance(value, float) else value)[: 4 * CELL_CHARS]
    text = " ".join(text.split())
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 1]}…"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def is_number(column: Any) -> bool:
    """Whether a column holds numbers that have an order, so no booleans and no complex ones."""
    types = _types()
    numeric = types.is_numeric_dtype(column.dtype) and not types.is_bool_dtype(column.dtype)
    return numeric and not types.is_complex_dtype(column.dtype)


def _types() -> Any:
    """pandas' questions about dtypes, from the pandas that made the frame."""
    return sys.modules["pandas"].api.types
