"""The words and ranges of a matplotlib figure, as text beside its picture: what a model need not read off pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

MAX_AXES = 6
MAX_LINES = 8
MAX_LABELS = 12
MAX_CHARS = 2_000


def figure_text(figure: Any) -> str:
    """Titles, labels, ranges, legends and series of each axes; "" if there is nothing to say."""
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    axes = [words for each in figure.axes[:MAX_AXES] if (words := "; ".join(_axes_words(each)))]
    numbered = [f"axes {at}: {words}" for at, words in enumerate(axes, start=1)] if len(axes) > 1 else axes
    lines = [*([f"figure title {title!r}"] if title else []), *numbered]
    return "\n".join(lines)[:MAX_CHARS]


def _axes_words(axes: Any) -> Iterator[str]:
    if axes.get_title():
        yield f"title {axes.get_title()!r}"
    if axes.axison and hasattr(axes, "get_xlim"):
        yield _axis_words("x", axes.get_xlabel(), axes.get_xlim(), axes.xaxis)
        yield _axis_words("y", axes.get_ylabel(), axes.get_ylim(), axes.yaxis)
    for line in axes.get_lines()[:MAX_LINES]:
        yield from _line_words(line)
    legend = axes.get_legend()
    if legend is not None:
        labels = [text.get_text() for text in legend.get_texts()[:MAX_LABELS]]
        yield f"legend {', '.join(map(repr, labels))}"


def _axis_words(name: str, label: str, limits: tuple[float, float], axis: Any) -> str:
    words = [name, repr(label) if label else "", f"from {limits[0]:.4g} to {limits[1]:.4g}"]
    words += [axis.get_scale()] if axis.get_scale() != "linear" else []
    formatter = axis.get_major_formatter()
    # Fixed texts, as names of bars; numbers along an axis follow from its range.
    fixed = getattr(formatter, "seq", None) or list(getattr(formatter, "_units", None) or ())
    words += [f"ticks {', '.join(str(text) for text in list(fixed)[:MAX_LABELS])}"] if len(fixed) else []
    return " ".join(word for word in words if word)


def _line_words(line: Any) -> Iterator[str]:
    import numpy

    values: Any = numpy.ma.filled(numpy.ma.asarray(line.get_ydata(orig=False), dtype=float), numpy.nan)
    values = values[numpy.isfinite(values)]
    if len(values) > 2:
        label = line.get_label()
        name = "" if label.startswith("_") else f" {label!r}"
        ends = f"from {values[0]:.4g} to {values[-1]:.4g}"
        yield f"line{name} of {len(values)} points, {ends}, lowest {values.min():.4g}, highest {values.max():.4g}"
