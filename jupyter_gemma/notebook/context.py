"""Objects of a notebook as parts of a prompt, found by type name so that no library is imported for the question."""

from __future__ import annotations

import ast
import builtins
import difflib
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.notebook import audio, braces, charts, frames, plots, tables, texts
from jupyter_gemma.notebook.items import Item, Limits, cut, text_item
from jupyter_gemma.types import AudioPart, ImagePart, Part, TextPart, VideoPart

Made = Item | Part | str | Iterable[Part]
Converter = Callable[[Any, Limits], Made]

# What users registered, like functools.singledispatch keeps it: it outlives every conversation.
_REGISTERED: dict[str | type, Converter] = {}


def register(kind: type | str, converter: Converter) -> None:
    """Let ``converter(value, limits)`` turn values of ``kind`` into a string, a part, parts or an :class:`Item`.

    ``kind`` is a class or its name, "package.module.Class" or "package.Class"; subclasses follow.
    """
    _REGISTERED[kind] = converter


def parts_of(value: object, limits: Limits | None = None) -> tuple[Part, ...]:
    """The parts that ``value`` becomes; see :func:`item_of`."""
    return item_of(value, limits or Limits()).parts


def item_of(value: object, limits: Limits) -> Item:
    """What ``value`` becomes: registered converters first, then ``_repr_llm_``, then its type, then its text.

    Raises:
        BadImage, BadAudio, RequestError: the value is of a known kind but cannot be used.
    """
    if isinstance(value, Item):
        return value
    found = _find(_REGISTERED, type(value))
    if found is not None:
        return _as_item(found(value, limits))
    if callable(getattr(value, "_repr_llm_", None)):
        return _as_item(value._repr_llm_())  # type: ignore[attr-defined]
    converter = _find(_CONVERTERS, type(value)) or _by_protocol(value)
    return _as_item(converter(value, limits))


def _find(table: Mapping[Any, Converter], kind: type) -> Converter | None:
    for cls in kind.__mro__:
        root = cls.__module__.partition(".")[0]
        for key in (cls, f"{cls.__module__}.{cls.__qualname__}", f"{root}.{cls.__qualname__}"):
            if key in table:
                return table[key]
    return None


def _by_protocol(value: object) -> Converter:
    if callable(getattr(value, "to_pandas", None)):
        return _from_pandas
    if _find({"matplotlib.FigureBase": plots.from_figure}, type(getattr(value, "figure", None))):
        return plots.from_artist  # seaborn's grids own a figure and are no artists
    return texts.from_anything


def _as_item(made: Made) -> Item:
    if isinstance(made, Item):
        return made
    if isinstance(made, str):
        return text_item(made, f"text, {len(made)} characters")
    parts = (made,) if isinstance(made, TextPart | ImagePart | AudioPart | VideoPart) else tuple(made)
    return Item(parts, ", ".join(note_of(part) for part in parts))


def note_of(part: Part) -> str:
    """A few words on what ``part`` holds."""
    if isinstance(part, TextPart):
        return f"text, {len(part.text)} characters"
    if isinstance(part, ImagePart):
        return plots.note_of(part.data)
    if isinstance(part, AudioPart):
        return audio.note_of(part.data)
    return f"video, {len(part.frames)} frames"


def _from_tuple(value: tuple[Any, ...], limits: Limits) -> Item:
    return audio.from_samples(value, limits) if audio.is_clip(value) else texts.from_collection(value, limits)


def _from_bytes(value: bytes, limits: Limits) -> Item:
    if charts.is_svg(value):
        return charts.from_svg(value, limits)
    if plots.is_picture(value):
        return plots.from_bytes(value, limits)
    if audio.is_sound(value):
        return audio.from_bytes(value, limits)
    return text_item(cut(repr(value[: limits.chars]), limits.chars), f"{len(value)} bytes")


def _from_path(value: Any, limits: Limits) -> Item:
    suffix = value.suffix.lower()
    if suffix == ".svg" and value.is_file():
        return charts.from_svg(plots.read(value, limits), limits)
    if suffix in plots.SUFFIXES:
        return plots.from_path(value, limits)
    if suffix in audio.SUFFIXES:
        return audio.from_path(value, limits)
    return texts.from_text_file(value, limits) or text_item(str(value), "path")


def _from_pandas(value: Any, limits: Limits) -> Item:
    try:
        return item_of(value.to_pandas(), limits)
    except ImportError:  # some convert through pyarrow, which may be absent
        return texts.from_anything(value, limits)


def is_explainable(value: object) -> bool:
    """Whether ``value`` is a table or becomes a picture."""
    if hasattr(value, "columns"):
        return True
    if isinstance(value, str | int | float):
        return False
    return any(isinstance(part, ImagePart) for part in item_of(value, Limits(rows=0)).parts)


_CONVERTERS: dict[str, Converter] = {
    "builtins.str": texts.from_text,
    "builtins.list": texts.from_collection,
    "builtins.dict": texts.from_collection,
    "builtins.set": texts.from_collection,
    "builtins.tuple": _from_tuple,
    "builtins.BaseException": texts.from_error,
    "builtins.function": texts.from_source,
    "builtins.method": texts.from_source,
    "builtins.type": texts.from_source,
    "builtins.module": texts.from_module,
    "builtins.bytes": _from_bytes,
    "builtins.bytearray": lambda value, limits: _from_bytes(bytes(value), limits),
    "pathlib.PurePath": _from_path,
    "numpy.ndarray": plots.from_any_array,
    "torch.Tensor": charts.from_tensor,
    "pandas.DataFrame": tables.from_frame,
    "pandas.Series": tables.from_series,
    "pandas.Index": lambda value, limits: tables.from_frame(value.to_frame(index=False), limits),
    "pandas.GroupBy": tables.from_groups,
    "polars.DataFrame": frames.from_polars,
    "polars.LazyFrame": frames.from_lazy,
    "polars.Series": frames.from_polars_series,
    "pyarrow.Table": frames.from_arrow,
    "pyarrow.RecordBatch": frames.from_arrow,
    "duckdb.DuckDBPyRelation": frames.from_duckdb,
    "_duckdb.DuckDBPyRelation": frames.from_duckdb,
    "dask.DataFrame": frames.from_dask,
    "dask.Series": frames.from_dask,
    "matplotlib.FigureBase": plots.from_figure,
    "matplotlib.Artist": plots.from_artist,
    "plotly.BaseFigure": charts.from_plotly,
    "altair.TopLevelMixin": charts.from_altair,
    "bokeh.Model": charts.from_bokeh,
    "PIL.Image": plots.from_pil,
    "IPython.Image": plots.from_display,
    "IPython.SVG": charts.from_svg_display,
    "IPython.Audio": audio.from_display,
}


def evaluate(expression: str, scope: Mapping[str, Any]) -> Any:
    """The value of ``expression`` among the user's variables.

    Raises:
        RequestError: it raised; the message shows the expression, ``__cause__`` is the user's exception.
    """
    try:
        return eval(compile(expression, f"<{{{expression}}}>", "eval"), dict(scope))  # noqa: S307 the user's own code
    except Exception as error:
        raise RequestError(
            f"{{{expression}}} raised {type(error).__name__}: {error}",
            f"Correct the expression, or write {{{{{expression}}}}} for the braces themselves.",
        ) from error


def fill(prompt: str, scope: Mapping[str, Any], known: Set[str]) -> list[tuple[str, Any]]:
    """``prompt`` cut at its placeholders: (expression, value) in order; the words between are items without a name.

    Raises:
        RequestError: an expression raised.
    """
    filled: list[tuple[str, Any]] = []
    for piece in braces.split(prompt, known):
        if isinstance(piece, str):
            filled.append(("", text_item(piece)))
        else:
            filled.append((piece.expression, evaluate(piece.expression, scope)))
    return filled


def attach(expressions: str, scope: Mapping[str, Any], known: Set[str]) -> list[tuple[str, Any]]:
    """The values of ``--with a,b,c``: (expression, value) for every expression of the list.

    Raises:
        BadOption: the list is no Python, or a name is unknown; the nearest is named.
        RequestError: an expression raised.
    """
    try:
        tree = ast.parse(f"({expressions},)", mode="eval")
    except SyntaxError as error:
        raise BadOption(f"--with {expressions} is not a list of Python expressions.", "Write --with a,b,c.") from error
    for name in sorted(braces.free_names(tree)):
        if name not in scope and not hasattr(builtins, name):
            near = difflib.get_close_matches(name, known, n=1)
            raise BadOption(
                f"There is no variable {name!r}.", f"Did you mean {near[0]}?" if near else "Define it first."
            )
    elements = tree.body.elts if isinstance(tree.body, ast.Tuple) else []
    sources = [ast.unparse(element) for element in elements]
    return [(source, evaluate(source, scope)) for source in sources]


def compose(pieces: Iterable[Item]) -> tuple[Part, ...]:
    """Join items to the parts of one message: texts merge, and a text of several lines gets lines of its own."""
    parts: list[Part] = []
    block_before = False
    for item in pieces:
        for part in item.parts:
            if not isinstance(part, TextPart) or not parts or not isinstance(parts[-1], TextPart):
                parts.append(part)
                continue
            block = bool(item.note) and "\n" in part.text
            parts[-1] = TextPart(_join(parts[-1].text, part.text, on_own_lines=block or block_before))
        block_before = bool(item.note) and any(isinstance(p, TextPart) and "\n" in p.text for p in item.parts)
    return _strip_ends(parts)


def _join(before: str, after: str, on_own_lines: bool) -> str:
    if not on_own_lines or before.endswith("\n") or after.startswith("\n"):
        return before + after
    return f"{before.rstrip(' ')}\n{after.lstrip(' ')}"


def _strip_ends(parts: list[Part]) -> tuple[Part, ...]:
    stripped = [TextPart(part.text.strip()) if isinstance(part, TextPart) else part for part in parts]
    return tuple(part for part in stripped if not isinstance(part, TextPart) or part.text)
