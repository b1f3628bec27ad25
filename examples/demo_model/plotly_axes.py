"""What ``figures.py`` asks of matplotlib's axes, drawn by plotly: the same data and captions in plotly's looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import kaleido
import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

TEMPLATES = ("plotly", "plotly", "plotly_white", "seaborn", "simple_white", "none", "plotly_dark")
NEW_TEMPLATES = ("ggplot2",)  # never seen in training
SIZES = ((700, 500), (700, 500), (600, 450), (800, 500), (640, 400), (900, 600))
_DASHES = {"-": "solid", "--": "dash", ":": "dot", "-.": "dashdot"}
_MARKERS = {"o": "circle", ".": "circle", "s": "square", "^": "triangle-up", "x": "x"}


class PlotlyAxes:
    """One plot of plotly, called as matplotlib's ``Axes`` is; only what the figures of the demo's data need.

    Sizes are in matplotlib's points: a pixel and a third, as at 96 pixels an inch.
    """

    def __init__(self, rng: Generator, *, new_style: bool = False) -> None:
        templates = NEW_TEMPLATES if new_style else TEMPLATES
        template = templates[rng.integers(len(templates))]
        self.dark = template == "plotly_dark"
        self.size = SIZES[rng.integers(len(SIZES))]
        self.figure = go.Figure(layout={"template": template, "showlegend": False})
        if rng.random() < 0.5:
            self.figure.update_layout(margin={"l": 60, "r": 30, "t": 50, "b": 50})

    def png(self) -> bytes:
        """The picture."""
        width, height = self.size
        drawn = kaleido.calc_fig_sync(self.figure.to_dict(), opts={"format": "png", "width": width, "height": height})
        return bytes(drawn)

    def plot(self, x: ArrayLike, y: ArrayLike, style: str = "-", *, color: str, lw: float, **look: Any) -> None:
        """A line; ``look`` has ``marker`` and its size ``ms``."""
        marker = look.get("marker", "")
        self._add(
            go.Scatter(
                x=x,
                y=y,
                mode="lines+markers" if marker else "lines",
                line={"color": _hex(color), "width": lw * 4 / 3, "dash": _DASHES[style]},
                marker={"symbol": _MARKERS.get(marker, "circle"), "size": look.get("ms", 4) * 4 / 3},
            )
        )

    def fill_between(self, x: ArrayLike, low: float, y: ArrayLike, *, color: str, alpha: float) -> None:
        """An area down to ``low``, which is 0."""
        red, green, blue = (round(255 * part) for part in mpl.colors.to_rgb(color))
        filled = f"rgba({red},{green},{blue},{alpha})"
        self._add(go.Scatter(x=x, y=y, mode="none", fill="tozeroy", fillcolor=filled))

    def bar(self, x: ArrayLike, height: ArrayLike, width: float = 0.8, **look: Any) -> None:
        """Upright bars, on others that end at ``bottom``."""
        self.figure.update_layout(barmode="overlay")
        self._name(self.figure.update_xaxes, x)
        self._add(go.Bar(x=x, y=height, width=width, base=look.get("bottom"), marker=_bar_look(look)))

    def barh(self, y: ArrayLike, width: ArrayLike, height: float = 0.8, **look: Any) -> None:
        """Lying bars."""
        self._name(self.figure.update_yaxes, y)
        self._add(go.Bar(x=width, y=y, width=height, orientation="h", marker=_bar_look(look)))

    def hist(self, values: NDArray[np.float64], bins: int, *, color: str, alpha: float, **look: Any) -> None:
        """So many bins from the least to the greatest value."""
        edges = np.linspace(values.min(), values.max(), bins + 1)
        edge = {} if look["edgecolor"] == "none" else {"color": look["edgecolor"], "width": 1}
        self.figure.update_layout(bargap=0 if look["histtype"] == "stepfilled" else 0.03)
        self._add(
            go.Histogram(
                x=values,
                xbins={"start": edges[0], "end": edges[-1] * 1.000001, "size": edges[1] - edges[0]},
                marker={"color": _hex(color), "opacity": alpha, "line": edge},
            )
        )

    def scatter(self, x: ArrayLike, y: ArrayLike, *, s: float, marker: str, color: str, alpha: float) -> None:
        """Points of ``s`` square points."""
        look = {"symbol": _MARKERS[marker], "size": 1 + s**0.5 * 4 / 3, "color": _hex(color), "opacity": alpha}
        self._add(go.Scatter(x=x, y=y, mode="markers", marker=look))

    def pie(self, parts: ArrayLike, *, colors: Sequence[str], startangle: float, wedgeprops: Any, **look: Any) -> None:
        """Slices, counted against the clock as matplotlib's; with ``wedgeprops`` a ring."""
        shown = [word for word, wanted in (("label", look["labels"]), ("percent", look["autopct"])) if wanted]
        self._add(
            go.Pie(
                values=parts,
                labels=[f"{word}{' ' * place}" for place, word in enumerate(look["labels"] or [""] * len(colors))],
                marker={"colors": [_hex(color) for color in colors]},
                rotation=90 - startangle,
                direction="counterclockwise",
                sort=False,
                hole=0.4 if wedgeprops else 0,
                textinfo="+".join(shown) or "none",
            )
        )

    def boxplot(self, data: Sequence[ArrayLike], *, colors: Sequence[str], showfliers: bool, **look: Any) -> None:
        """A box for each row of ``data``; plain ones without ``colors``."""
        points = "outliers" if showfliers else False
        for place, values in enumerate(data):
            fill = {"fillcolor": _hex(colors[place]), "line": {"color": "#444"}} if colors else {}
            self._add(go.Box(y=values, x0=place + 1, boxpoints=points, width=look["widths"], **fill))

    def violinplot(self, data: Sequence[ArrayLike], *, showmedians: bool) -> None:
        """A violin for each row of ``data``."""
        for place, values in enumerate(data):
            self._add(go.Violin(y=values, x0=place + 1, points=False, meanline_visible=showmedians, width=0.7))

    def imshow(self, values: ArrayLike, *, cmap: str, aspect: str) -> None:
        """Squares coloured by their values, the first row above."""
        del aspect  # plotly always fills the axes
        self._add(go.Heatmap(z=values, colorscale=cmap))
        self.figure.update_yaxes(autorange="reversed")

    def set_title(self, text: str, *, loc: str, fontweight: str) -> None:
        """Above the plot."""
        x = {"left": 0.05, "center": 0.5}[loc]
        self.figure.update_layout(title={"text": text, "x": x, "font": {"weight": fontweight}})

    def set_xlabel(self, text: str) -> None:
        """Below the plot."""
        self.figure.update_xaxes(title=text)

    def set_ylabel(self, text: str) -> None:
        """Left of the plot."""
        self.figure.update_yaxes(title=text)

    def set_xticks(self, places: Sequence[float], names: Sequence[str]) -> None:
        """Names under places."""
        self.figure.update_xaxes(tickvals=list(places), ticktext=list(names))

    def tick_params(self, axis: str, *, rotation: float) -> None:
        """Turn the names under the plot."""
        del axis  # only ever x
        self.figure.update_xaxes(tickangle=rotation)

    def legend(self, names: Sequence[str], loc: str) -> None:
        """What the traces are called."""
        del loc  # plotly has it at the right
        for trace, name in zip(self.figure.data, names, strict=False):
            trace.name = name
        self.figure.update_layout(showlegend=True)

    def get_ylim(self) -> tuple[float, float]:
        """The least and the greatest value drawn."""
        drawn = np.concatenate([np.asarray(trace.y) for trace in self.figure.data])
        return float(drawn.min()), float(drawn.max())

    def set_ylim(self, low: float, high: float) -> None:
        """The least and the greatest value of the axis."""
        self.figure.update_yaxes(range=[low, high])

    def _name(self, update: Callable[..., Any], places: Any) -> None:
        """Names are no numbers, also where they look like years."""
        if isinstance(places[0], str):
            update(type="category")

    def _add(self, trace: Any) -> None:
        self.figure.add_trace(trace)


def _hex(color: str) -> str:
    return str(mpl.colors.to_hex(color))


def _bar_look(look: dict[str, Any]) -> dict[str, Any]:
    color = look["color"]
    edge = {} if look.get("edgecolor", "none") == "none" else {"color": look["edgecolor"], "width": 1}
    colors = [color] if isinstance(color, str) else color
    return {"color": _hex(colors[0]) if len(colors) == 1 else [_hex(one) for one in colors], "line": edge}
