"""Tables of other libraries, brought to pandas in a bounded size: polars, Arrow, DuckDB, Dask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jupyter_gemma.notebook.items import Item, Limits, text_item
from jupyter_gemma.notebook.tables import SAMPLE_ROWS, Table, describe

# Up to so many cells a frame is converted whole.
EXACT_CELLS = 2_000_000


def from_polars(frame: Any, limits: Limits) -> Item:
    """A polars data frame."""
    some = frame.select(frame.columns[: limits.columns])
    step = _step(frame.height, some.width)
    sample = some.gather_every(step) if step > 1 else some
    return _described(sample, _polars_to_pandas, frame.shape, step, list(map(str, some.dtypes)), limits)


def from_lazy(frame: Any, limits: Limits) -> Item:
    """A polars lazy frame: its schema and its first rows; it is not computed whole."""
    schema = frame.collect_schema()
    words = f"Lazy table of {len(schema)} columns: {_schema_words(schema, limits)}"
    if not limits.rows:
        return text_item(words, f"lazy table of {len(schema)} columns, 0 rows of cells")
    head = frame.head(limits.rows).select(schema.names()[: limits.columns]).collect()
    return text_item(
        f"{words}\nFirst rows:\n{_rows(head.columns, head.rows())}", f"lazy table, {len(head)} rows of cells"
    )


def _polars_to_pandas(frame: Any) -> Any:
    try:
        return frame.to_pandas()
    except ImportError:  # without pyarrow
        import pandas

        return pandas.DataFrame(frame.to_dict(as_series=False))


def from_polars_series(series: Any, limits: Limits) -> Item:
    """A polars series, as a frame of one column."""
    return from_polars(series.to_frame(), limits)


def from_arrow(table: Any, limits: Limits) -> Item:
    """An Arrow table or record batch."""
    some = table.select(table.column_names[: limits.columns])
    step = _step(table.num_rows, some.num_columns)
    sample = some.take(list(range(0, table.num_rows, step))) if step > 1 else some
    types = [str(field.type) for field in some.schema]
    return _described(sample, lambda part: part.to_pandas(), table.shape, step, types, limits)


def from_duckdb(relation: Any, limits: Limits) -> Item:
    """A DuckDB relation: how many rows it has, and figures of its first ones."""
    ((rows,),) = relation.count("*").fetchall()
    names = ", ".join('"{}"'.format(name.replace('"', '""')) for name in relation.columns[: limits.columns])
    frame = relation.project(names).limit(SAMPLE_ROWS).df()
    sampled = f"the first {SAMPLE_ROWS} rows" if rows > SAMPLE_ROWS else ""
    types = tuple(map(str, relation.types[: limits.columns]))
    return describe(Table(frame, rows, len(relation.columns), sampled, types), limits)


def from_dask(frame: Any, limits: Limits) -> Item:
    """A Dask data frame or series: its schema, and the first rows of its first partition."""
    frame = frame.to_frame() if hasattr(frame, "to_frame") else frame
    schema = dict(zip(map(str, frame.columns), frame.dtypes, strict=True))
    words = f"Dask table of {len(schema)} columns in {frame.npartitions} partitions: {_schema_words(schema, limits)}"
    if not limits.rows:
        return text_item(words, f"Dask table of {len(schema)} columns, 0 rows of cells")
    head = frame.head(limits.rows, npartitions=1)
    rows = list(head.iloc[:, : limits.columns].itertuples(index=False, name=None))
    return text_item(
        f"{words}\nFirst rows:\n{_rows(list(schema)[: limits.columns], rows)}", f"Dask table, {len(rows)} rows of cells"
    )


def _described(
    sample: Any, convert: Callable[[Any], Any], shape: tuple[int, int], step: int, types: list[str], limits: Limits
) -> Item:
    try:
        frame = convert(sample)
    except ImportError:  # without pandas
        return text_item(f"Table of {shape[0]} rows and {shape[1]} columns: {', '.join(types)}", "table")
    sampled = f"every {step}th row" if step > 1 else ""
    return describe(Table(frame, *shape, sampled, tuple(types)), limits)


def _step(rows: int, columns: int) -> int:
    return 1 if rows * columns <= EXACT_CELLS else -(-rows // SAMPLE_ROWS)


def _schema_words(schema: Any, limits: Limits) -> str:
    named = [f"{str(name)[:80]} ({dtype})" for name, dtype in list(schema.items())[: limits.columns]]
    more = [f"… and {len(schema) - len(named)} more"] if len(schema) > len(named) else []
    return ", ".join([*named, *more])


def _rows(names: list[str], rows: list[tuple[Any, ...]]) -> str:
    return "\n".join(" | ".join(str(cell)[:40] for cell in row) for row in [tuple(names), *rows])
