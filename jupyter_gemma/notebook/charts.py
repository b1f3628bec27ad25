"""Plots that are drawn in the browser: plotly, Altair and Vega-Lite, Bokeh, SVG.

Where a renderer is installed (kaleido, vl-convert) they become pictures; else their data goes as text, and the note
says so. Nothing is fetched: addresses inside a chart are not followed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from jupyter_gemma.notebook import plots
from jupyter_gemma.notebook.items import Item, Limits, cut, text_item

MAX_TRACES = 12
MAX_POINTS = 12
_REMOTE = re.compile(r"""(?:xlink:)?href\s*=\s*(?:"(?!\#|data:)[^"]*"|'(?!\#|data:)[^']*')|@import[^;]*;""", re.I)
_REMOTE_CSS = re.compile(r"""url\(\s*["']?(?!\#|data:)[^)]*\)""", re.I)
_ENTITIES = re.compile(r"<!DOCTYPE[^>\[]*(\[[^\]]*\])?[^>]*>", re.I)
# kaleido draws in a browser that would fetch MathJax, maps and whatever pictures a figure names.
_POLICY = "default-src file: data: blob: 'unsafe-inline' 'unsafe-eval'"
DRAW_SECONDS = 30.0


def from_plotly(figure: Any, limits: Limits) -> Item:
    """A plotly figure."""
    if importlib.util.find_spec("kaleido") is not None:
        try:
            return plots.from_bytes(_drawn(figure), limits)
        except Exception as error:  # noqa: BLE001 kaleido needs a browser, and says so in many ways
            reason = f"kaleido: {type(error).__name__}"
        return _as_text(_plotly_text(figure), f"plotly figure as text ({reason})", limits)
    return _as_text(_plotly_text(figure), "plotly figure as text (kaleido would draw it)", limits)


def _drawn(figure: Any) -> bytes:
    """A plotly figure as PNG, drawn by kaleido in a page that may load nothing from elsewhere."""
    kaleido: Any = importlib.import_module("kaleido")
    page = kaleido.PageGenerator(mathjax=False)
    before, _, after = page.header.partition("<head>")
    page.header = f'{before}<head><meta http-equiv="Content-Security-Policy" content="{_POLICY}">{after}'
    settings = {"page_generator": page, "timeout": DRAW_SECONDS}
    return bytes(kaleido.calc_fig_sync(figure.to_dict(), opts={"format": "png"}, kopts=settings))


def _plotly_text(figure: Any) -> Iterator[str]:
    layout = figure.layout
    words = {"title": layout.title.text, "x axis": layout.xaxis.title.text, "y axis": layout.yaxis.title.text}
    named = [f"{name} {text!r}" for name, text in words.items() if text]
    yield f"Plotly figure of {len(figure.data)} traces{': ' if named else ''}{', '.join(named)}"
    for trace in figure.data[:MAX_TRACES]:
        columns = {key: getattr(trace, key, None) for key in ("x", "y", "z", "labels", "values", "r", "theta")}
        there = "; ".join(_values_words(key, values) for key, values in columns.items() if values is not None)
        yield f"- {trace.type}{f' {trace.name!r}' if trace.name else ''}: {there}"


def _values_words(name: str, values: Any) -> str:
    """``x 100 values from 0 to 9: 0, 1, …``."""
    points = values.tolist() if hasattr(values, "tolist") else list(values)
    numbers = [point for point in points if isinstance(point, int | float)]
    extent = f" from {min(numbers):.6g} to {max(numbers):.6g}" if len(numbers) == len(points) and numbers else ""
    step = max(1, len(points) // MAX_POINTS)
    some = ", ".join(_point(point) for point in points[::step][:MAX_POINTS])
    return f"{name} {len(points)} values{extent}: {some}{', …' if step > 1 else ''}"


def _point(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:40]


def from_altair(chart: Any, limits: Limits) -> Item:
    """An Altair chart."""
    return from_vega_lite(chart.to_dict(), limits)


def from_vega_lite(spec: dict[str, Any], limits: Limits) -> Item:
    """A Vega-Lite specification."""
    if importlib.util.find_spec("vl_convert") is None:
        return _as_text(_vega_text(spec), "chart as text (vl-convert-python would draw it)", limits)
    import vl_convert

    try:
        png = vl_convert.vegalite_to_png(vl_spec=spec, scale=2.0, allowed_base_urls=[])
    except (ValueError, RuntimeError) as error:
        return _as_text(_vega_text(spec), f"chart as text ({_reason(error)})", limits)
    return plots.from_bytes(png, limits)


def _vega_text(spec: Mapping[str, Any]) -> Iterator[str]:
    shape = {key: value for key, value in spec.items() if key not in ("datasets", "config", "$schema")}
    yield f"Vega-Lite chart: {json.dumps(shape, ensure_ascii=False, default=str)}"
    for rows in spec.get("datasets", {}).values():
        yield f"{len(rows)} rows, the first: {json.dumps(rows[:MAX_POINTS], ensure_ascii=False, default=str)}"


def from_bokeh(model: Any, limits: Limits) -> Item:
    """A Bokeh plot, always as text: to draw it a browser would be needed."""
    return _as_text(_bokeh_text(model), "Bokeh plot as text", limits)


def _bokeh_text(model: Any) -> Iterator[str]:
    plots_in = [each for each in model.references() if hasattr(each, "renderers") and hasattr(each, "title")]
    for plot in plots_in[:MAX_TRACES]:
        labels = [f"{name} {axis[0].axis_label!r}" for name, axis in (("x", plot.xaxis), ("y", plot.yaxis)) if axis]
        title = getattr(plot.title, "text", "") or ""
        yield f"Bokeh plot {title!r}, {', '.join(labels)}:"
        for renderer in plot.renderers[:MAX_TRACES]:
            data = getattr(getattr(renderer, "data_source", None), "data", {})
            columns = "; ".join(_values_words(name, values) for name, values in list(data.items())[:4])
            yield f"- {type(getattr(renderer, 'glyph', renderer)).__name__}: {columns}"


def is_svg(data: bytes) -> bool:
    """Whether ``data`` begins as an SVG file does."""
    start = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg", b"<!--")) and b"<svg" in start)


def from_svg(data: bytes, limits: Limits) -> Item:
    """An SVG file; what it would load from elsewhere is left out."""
    text = _REMOTE_CSS.sub("none", _REMOTE.sub("", _ENTITIES.sub("", data.decode("utf-8", "replace"))))
    if importlib.util.find_spec("vl_convert") is None:
        return text_item(cut(text, limits.chars), "SVG as text (vl-convert-python would draw it)")
    import vl_convert

    try:
        return plots.from_bytes(vl_convert.svg_to_png(text), limits)
    except (ValueError, RuntimeError) as error:
        return text_item(cut(text, limits.chars), f"SVG as text ({_reason(error)})")


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()[:80]


def from_svg_display(svg: Any, limits: Limits) -> Item:
    """An ``IPython.display.SVG``."""
    data = svg.data or ""
    return from_svg(data.encode() if isinstance(data, str) else data, limits)


def _as_text(lines: Iterator[str], note: str, limits: Limits) -> Item:
    return text_item(cut("\n".join(lines), min(limits.chars, 3 * limits.tokens)), note)


def from_tensor(tensor: Any, limits: Limits) -> Item:
    """A torch tensor: C × H × W pictures are turned, anything else is as the numpy array it holds."""
    array = array_of(tensor)
    is_channels_first = array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (3, 4)
    if is_channels_first:
        array = array.transpose(1, 2, 0)
        array = array[:, :, 0] if array.shape[2] == 1 else array
    return plots.from_any_array(array, limits)


def array_of(tensor: Any) -> Any:
    """The numbers of a torch tensor as a numpy array, wherever it lies."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point() and tensor.dtype not in (sys.modules["torch"].float32, sys.modules["torch"].float64):
        tensor = tensor.float()  # numpy knows no bfloat16
    return tensor.numpy()
