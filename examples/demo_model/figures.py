"""Figures of many looks, with captions and labels written from the data behind them.

matplotlib draws them, half of the violins, histograms and heat maps through seaborn; plotly draws others from the same
data. A caption's first sentence names the kind, the others say what can be read off, in the phrases that
``jupyter_gemma/finetune/evaluate.py`` counts.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.random import Generator
from numpy.typing import NDArray

from examples.demo_model.plotly_axes import PlotlyAxes

COLORS = {
    "blue": ("#1f77b4", "#0000ff", "#4c72b0", "#377eb8", "royalblue", "steelblue", "dodgerblue", "#348abd"),
    "orange": ("#ff7f0e", "#dd8452", "orange", "darkorange"),
    "green": ("#2ca02c", "#55a868", "green", "seagreen", "#4daf4a", "limegreen"),
    "red": ("#d62728", "#c44e52", "red", "crimson", "#e41a1c", "#e24a33"),
    "purple": ("#9467bd", "#8172b3", "purple", "#984ea3", "darkviolet"),
    "brown": ("#8c564b", "#937860", "sienna", "#a65628"),
    "pink": ("#e377c2", "#da8bc3", "hotpink", "deeppink"),
    "gray": ("#7f7f7f", "#8c8c8c", "gray", "dimgray"),
    "cyan": ("#17becf", "#64b5cd", "darkturquoise", "deepskyblue"),
    "yellow": ("gold", "#e6c700", "#f0d000", "yellow"),
    "black": ("black", "#202020"),
}
THINGS = (
    *("sales", "revenue", "temperature", "rainfall", "population", "speed", "price", "profit", "cost", "traffic"),
    *("energy", "weight", "height", "score", "demand", "growth", "error", "accuracy", "loss", "distance"),
)
AXES = ("time", "day", "month", "year", "age", "size", "week", "hour")
ORDER = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NAMES = (
    ("A", "B", "C", "D", "E", "F", "G", "H"),
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "Hol"),
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug"),
    ("2016", "2017", "2018", "2019", "2020", "2021", "2022", "2023"),
    ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8"),
)
STYLES = (
    *("default", "default", "default", "bmh", "fivethirtyeight", "seaborn-v0_8", "seaborn-v0_8-whitegrid", "classic"),
    *("seaborn-v0_8-darkgrid", "dark_background", "grayscale", "Solarize_Light2", "fast", "tableau-colorblind10"),
)
# Never seen in training.
NEW_STYLES = ("ggplot", "seaborn-v0_8-ticks")
FONTS = ("DejaVu Sans", "DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
SIZES = ((384, 288), (384, 288), (336, 240), (432, 288), (384, 336), (640, 480), (480, 360))
DPI = 100

Values = NDArray[np.float64]
# What a line does -> its values at x from 0 to 1, given two draws from 0 to 1.
SHAPES: Mapping[str, Callable[[Values, float, float], Values]] = {
    "rises steadily": lambda x, a, b: x * (0.8 + 0.4 * a),
    "falls steadily": lambda x, a, b: -x * (0.8 + 0.4 * a),
    "stays flat": lambda x, a, b: 0 * x,
    "rises to a peak and then falls": lambda x, a, b: np.exp(-(((x - 0.35 - 0.3 * a) / (0.15 + 0.1 * b)) ** 2)),
    "falls to a low and then rises": lambda x, a, b: -np.exp(-(((x - 0.35 - 0.3 * a) / (0.15 + 0.1 * b)) ** 2)),
    "goes up and down in a repeating pattern": lambda x, a, b: 0.5 * np.sin(2 * np.pi * (x * (2.2 + 3.8 * a) + b)),
    "grows faster and faster": lambda x, a, b: np.expm1((3.5 + 2.5 * a) * x) / np.expm1(3.5 + 2.5 * a),
    "rises quickly and then levels off": lambda x, a, b: 1 - np.exp(-(5 + 4 * a) * x),
    "drops quickly and then levels off": lambda x, a, b: np.exp(-(5 + 4 * a) * x),
    "jumps up in the middle": lambda x, a, b: 1 / (1 + np.exp(-(x - 0.4 - 0.2 * a) * (30 + 50 * b))),
}


@dataclass(frozen=True)
class Drawn:
    """A figure as PNG and what is true of it; a text that it does not have is ""."""

    png: bytes
    caption: str
    title: str
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Hand:
    """Who draws one figure: the axes, chance, the size of its numbers, and whether its ground is dark."""

    axes: Any  # matplotlib's Axes or PlotlyAxes
    rng: Generator
    scale: float
    dark: bool = False

    def pick(self, *choices: str) -> str:
        """One of the words."""
        return choices[self.rng.integers(len(choices))]

    def pick_number(self, *choices: float) -> float:
        """One of the numbers."""
        return float(self.rng.choice(choices))

    def often(self, chance: float) -> bool:
        """True in so great a share of all cases."""
        return bool(self.rng.random() < chance)

    def by_seaborn(self) -> bool:
        """True for half of what matplotlib draws."""
        return self.often(0.5) and isinstance(self.axes, Axes)

    def colors(self, count: int) -> dict[str, str]:
        """So many colours by name; none that the ground has."""
        names = [str(name) for name in self.rng.permutation(list(COLORS)) if not (self.dark and name == "black")]
        return {name: self.pick(*COLORS[name]) for name in names[:count]}

    def alpha(self) -> float:
        """How much hides what is behind."""
        return self.pick_number(1, 1, 0.8, 0.6)

    def legend(self, chance: float, names: int) -> None:
        """Perhaps a legend that calls what was drawn by any names."""
        if self.often(chance):
            self.axes.legend([self.pick(*THINGS) for _ in range(names)], loc="best")

    def apart(self, count: int, low: float, gap: float) -> Values:
        """Values in [low, 1] whose two greatest, and two smallest, differ by ``gap``."""
        while True:
            values = self.rng.uniform(low, 1, count)
            ranked = np.sort(values)
            if count < 2 or min(ranked[-1] - ranked[-2], ranked[1] - ranked[0]) > gap:
                return values


def line(hand: Hand) -> str:
    """One to four lines, each with a shape of its own."""
    rng = hand.rng
    count = int(rng.choice((1, 1, 1, 2, 2, 3, 4)))
    x = np.linspace(0, 1, int(rng.choice((6, 8, 12, 20, 40, 80))))
    wide, begin, noise = (
        hand.pick_number(1, 10, 100, 365),
        hand.pick_number(0, 0, 2000),
        hand.pick_number(0, 0.02, 0.04, 0.07),
    )
    marker = str(rng.choice(("", "", "", "o", "s", "^", ".")))
    said = []
    for name, color in sorted(hand.colors(count).items()):
        shape = hand.pick(*(SHAPES if len(x) >= 40 else [s for s in SHAPES if "pattern" not in s]))
        y = SHAPES[shape](x, rng.random(), rng.random()) + rng.normal(0, noise, len(x)) + rng.uniform(-0.5, 0.5)
        style, width = str(rng.choice(("-", "-", "-", "-", "--", ":", "-."))), rng.uniform(1, 2.8)
        hand.axes.plot(
            begin + x * wide, y * hand.scale, style, color=color, lw=width, marker=marker, ms=rng.uniform(2.5, 5)
        )
        said.append(f"The {name} line {shape}." if count > 1 else f"The line {shape}.")
    if count > 1:
        hand.legend(0.6, count)
    if "stays flat" in " ".join(said):
        _give_room(hand.axes, hand.scale)
    named = f"one {name} line" if count == 1 else f"{COUNTS[count]} lines"
    return f"This is a line chart with {named}. {' '.join(said)}"


def _give_room(axes: Any, scale: float) -> None:
    """Keep small noise from filling the whole height, which would look like a pattern."""
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max(high - low, scale) * 0.6
    axes.set_ylim(middle - half, middle + half)


def area(hand: Hand) -> str:
    """One filled shape."""
    x = np.linspace(0, 1, 60)
    shape = hand.pick(*(shape for shape in SHAPES if shape != "stays flat"))
    y = SHAPES[shape](x, hand.rng.random(), hand.rng.random())
    ((name, color),) = hand.colors(1).items()
    y = (y - y.min() + 0.15) * hand.scale
    hand.axes.fill_between(x * 100, 0, y, color=color, alpha=hand.rng.uniform(0.4, 0.9))
    if hand.often(0.4):
        hand.axes.plot(x * 100, y, color=color, lw=hand.rng.uniform(1, 2.8))
    return f"This is an area chart in {name}. The value {shape}."


def bars(hand: Hand) -> str:
    """Three to eight bars, upright or lying; in no order, growing or shrinking."""
    rng, count, lying = hand.rng, int(hand.rng.integers(3, 9)), bool(hand.rng.random() < 0.4)
    values, order = hand.apart(count, 0.15, 0.05), hand.pick("none", "none", "none", "grow", "shrink")
    if order != "none":
        values = np.sort(values)[:: 1 if order == "grow" else -1]
    colors = list(hand.colors(count if rng.random() < 0.25 else 1).values())
    names = NAMES[rng.integers(len(NAMES))][:count]
    draw = hand.axes.barh if lying else hand.axes.bar
    draw(names, values * hand.scale, rng.uniform(0.5, 0.9), color=colors, edgecolor=str(rng.choice(("none", "black"))))
    if not lying:
        hand.axes.tick_params(axis="x", rotation=hand.pick_number(0, 0, 30, 45))
    side = "from the bottom" if lying else "from the left"
    kind = f"This is a {'horizontal' if lying else 'vertical'} bar chart with {COUNTS[count]} bars."
    if order != "none":
        return f"{kind} The bars {order} {side}."
    most, least = ORDER[int(values.argmax())], ORDER[int(values.argmin())]
    return f"{kind} The {'longest' if lying else 'tallest'} bar is the {most} {side} and the {least} is the shortest."


def stacked_bars(hand: Hand) -> str:
    """Bars of two or three parts."""
    count, colors = int(hand.rng.integers(2, 6)), hand.colors(int(hand.rng.choice((2, 2, 3))))
    total = hand.apart(count, 0.4, 0.06)
    shares = hand.rng.dirichlet(np.full(len(colors), 6.0), count)  # [bars, parts]
    base = np.zeros(count)
    for part, color in enumerate(colors.values()):
        height = total * shares[:, part] * hand.scale
        hand.axes.bar(NAMES[0][:count], height, 0.7, bottom=base, color=color)
        base += height
    hand.legend(0.5, len(colors))
    parts = f"{COUNTS[count]} bars and {COUNTS[len(colors)]} parts in {' and '.join(sorted(colors))}"
    return (
        f"This is a stacked bar chart with {parts}. The tallest bar is the {ORDER[int(total.argmax())]} from the left."
    )


def grouped_bars(hand: Hand) -> str:
    """Groups of two or three bars, one colour above the others."""
    count, colors = int(hand.rng.integers(2, 6)), hand.colors(int(hand.rng.choice((2, 2, 3))))
    best, width = int(hand.rng.integers(len(colors))), 0.8 / len(colors)
    for place, color in enumerate(colors.values()):
        height = hand.rng.uniform(0.2, 0.6, count) + (0.3 if place == best else 0)
        hand.axes.bar(np.arange(count) + place * width, height * hand.scale, width, color=color)
    hand.axes.set_xticks(np.arange(count) + 0.4 - width / 2, NAMES[0][:count])
    hand.legend(0.5, len(colors))
    kind = f"This is a grouped bar chart with {COUNTS[count]} groups and {COUNTS[len(colors)]} series."
    return f"{kind} The {list(colors)[best]} bars are the tallest overall."


def scatter(hand: Hand) -> str:
    """Points with a trend, a curve, or none; or in groups apart."""
    rng = hand.rng
    if hand.often(0.2):
        return _groups(hand)
    correlation = {"a strong positive": 0.97, "a strong negative": -0.97, "a weak positive": 0.72}
    correlation |= {"a weak negative": -0.72, "no clear": 0.0}
    form = hand.pick(*correlation, "a U-shaped", "a hill-shaped")
    x = rng.uniform(-1, 1, int(rng.choice((30, 60, 100, 200))))
    if form in correlation:
        y = correlation[form] * x + np.sqrt(1 - correlation[form] ** 2) * rng.normal(0, 0.58, len(x))
    else:
        y = (2 * x**2 - 1) * (1 if "U" in form else -1) + rng.normal(0, 0.15, len(x))
    ((name, color),) = hand.colors(1).items()
    size, marker = rng.uniform(4, 30), str(rng.choice(list("ooos^x.")))
    hand.axes.scatter(x * 10, y * hand.scale, s=size, marker=marker, color=color, alpha=hand.alpha())
    what = "pattern" if "shaped" in form else "trend"
    return f"This is a scatter plot of {name} points with {form} {what}."


def _groups(hand: Hand) -> str:
    """Two to four heaps of points, in one colour or each in its own."""
    rng, count = hand.rng, int(hand.rng.integers(2, 5))
    colors = list(hand.colors(1 if hand.often(0.4) else count).values())
    centers: list[Values] = []
    while len(centers) < count:
        center = rng.random(2)
        if all(np.square(center - other).sum() > 0.16 for other in centers):
            centers.append(center)
    size, marker, points = rng.uniform(4, 30), str(rng.choice(list("ooos^x."))), int(rng.choice((30, 60, 100, 200)))
    for place, center in enumerate(centers):
        x, y = hand.scale * (center + rng.normal(0, 0.06, (points // count + 5, 2))).T
        hand.axes.scatter(x, y, s=size, marker=marker, color=colors[place % len(colors)], alpha=hand.alpha())
    return f"This is a scatter plot with {COUNTS[count]} separate groups of points."


def histogram(hand: Hand) -> str:
    """Bell, skew, uniform, or two peaks."""
    rng, count = hand.rng, int(hand.rng.choice((500, 1000, 3000)))
    form = hand.pick("bell-shaped", "skewed to the right", "skewed to the left", "roughly uniform", "two peaks")
    values = {
        "bell-shaped": rng.normal(0, 1, count),
        "skewed to the right": rng.exponential(1, count),
        "skewed to the left": -rng.exponential(1, count),
        "roughly uniform": rng.uniform(0, 1, count),
        "two peaks": np.concatenate((rng.normal(-2, 0.6, count), rng.normal(2, 0.6, int(count * rng.uniform(0.6, 1))))),
    }[form]
    ((name, color),) = hand.colors(1).items()
    bins, edge = int(rng.choice((10, 15, 20, 30))), str(rng.choice(("none", "black", "white")))
    if hand.by_seaborn():
        sns.histplot(values * hand.scale, bins=bins, color=color, edgecolor=edge, alpha=1.0, ax=hand.axes)
    else:
        kind = hand.pick("bar", "bar", "stepfilled")
        hand.axes.hist(values * hand.scale, bins=bins, color=color, edgecolor=edge, alpha=hand.alpha(), histtype=kind)
    return f"This is a {name} histogram. The distribution {'has' if form == 'two peaks' else 'is'} {form}."


def pie(hand: Hand) -> str:
    """Two to six slices, one clearly the largest; some are rings."""
    count = int(hand.rng.integers(2, 7))
    while True:
        parts = hand.rng.dirichlet(np.full(count, 2.0))
        ranked = np.sort(parts)
        if ranked[-1] - ranked[-2] > 0.05 and ranked[0] > 0.04:
            break
    colors = hand.colors(count)
    ring = {"width": 0.4} if hand.rng.random() < 0.25 else {}
    labels = [hand.pick(*THINGS) for _ in parts] if hand.often(0.5) else None
    start, percent = hand.pick_number(0, 90, hand.rng.uniform(0, 360)), "%1.0f%%" if hand.often(0.4) else None
    hand.axes.pie(
        parts, colors=list(colors.values()), startangle=start, wedgeprops=ring, labels=labels, autopct=percent
    )
    largest = list(colors)[int(parts.argmax())]
    bounds = {"more than half": 0.53, "about half": 0.44, "about forty percent": 0.4, "about a third": 0.28}
    share = next((words for words, bound in bounds.items() if parts.max() > bound), "about a quarter")
    return f"This is a pie chart with {COUNTS[count]} slices. The largest slice is {largest} and covers {share}."


def boxes(hand: Hand) -> str:
    """Two to six boxes or violins."""
    rng, count, violin = hand.rng, int(hand.rng.integers(2, 7)), bool(hand.rng.random() < 0.3)
    data = [
        rng.normal(2 * center - 1, rng.uniform(0.15, 0.4), 200) * hand.scale for center in hand.apart(count, 0, 0.08)
    ]
    first = 1
    if not violin:
        filled, points, widths = hand.often(0.6), hand.often(0.6), rng.uniform(0.3, 0.7)
        colors = list(hand.colors(count).values())
        _boxes(hand.axes, data, widths, points, colors if filled else [])
    elif hand.by_seaborn():
        sns.violinplot(data=data, palette=list(hand.colors(count).values()), ax=hand.axes)
        first = 0
    else:
        hand.axes.violinplot(data, showmedians=True)
    hand.axes.set_xticks(range(first, first + count), NAMES[0][:count])
    best = ORDER[int(np.argmax([np.median(values) for values in data]))]
    kind = f"This is a {'violin' if violin else 'box'} plot comparing {COUNTS[count]} groups."
    return f"{kind} The {best} group has the highest median."


def _boxes(axes: Any, data: list[Values], widths: float, points: bool, colors: list[str]) -> None:
    if isinstance(axes, PlotlyAxes):
        axes.boxplot(data, widths=widths, showfliers=points, colors=colors)
    else:
        drawn = axes.boxplot(data, patch_artist=bool(colors), widths=widths, showfliers=points)
        for box, color in zip(drawn["boxes"], colors, strict=False):
            box.set_facecolor(color)


def heat_map(hand: Hand) -> str:
    """A hill in a corner or the middle of a grid."""
    rows, columns = hand.rng.integers(3, 11, 2)
    places = {
        "upper left": (0, 0),
        "upper right": (1, 0),
        "lower left": (0, 1),
        "lower right": (1, 1),
        "center": (0.5, 0.5),
    }
    place = hand.pick(*places)
    x, y = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    far = (x - places[place][0]) ** 2 + (y - places[place][1]) ** 2
    values = (np.exp(-far * hand.rng.uniform(3, 6)) + hand.rng.normal(0, 0.06, x.shape)) * hand.scale
    colors = hand.pick("viridis", "plasma", "magma", "inferno", "cividis", "hot", "gray")
    if hand.by_seaborn():
        sns.heatmap(values, cmap=colors, cbar=bool(hand.rng.random() < 0.7), ax=hand.axes)
    else:
        hand.axes.imshow(values, cmap=colors, aspect="auto")
    return f"This is a heat map. The highest values are in the {place}{'' if place == 'center' else ' corner'}."


#: How to draw a kind of figure, and how often.
KINDS: Mapping[Callable[[Hand], str], float] = {
    line: 5,
    bars: 4,
    scatter: 3,
    histogram: 3,
    pie: 2,
    boxes: 2,
    area: 1,
    stacked_bars: 1,
    grouped_bars: 1.5,
    heat_map: 1.5,
}


def draw_figure(rng: Generator, *, new_style: bool = False) -> Drawn:
    """A figure by matplotlib, in a style of the training set or in one that training never sees."""
    styles = NEW_STYLES if new_style else STYLES
    with mpl.style.context(styles[rng.integers(len(styles))], after_reset=True), mpl.rc_context(_look(rng)):
        width, height = SIZES[rng.integers(len(SIZES))]
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        FigureCanvasAgg(figure)
        dark = sum(mpl.colors.to_rgb(mpl.rcParams["axes.facecolor"])) < 1.5
        hand = Hand(figure.subplots(), rng, 10 ** rng.uniform(-1, 3.5), dark)
        _lay_out(figure, hand)
        texts = _fill(hand)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return Drawn(buffer.getvalue(), *texts)


def draw_plotly_figure(rng: Generator, *, new_style: bool = False) -> Drawn:
    """A figure by plotly, through kaleido and a browser; faster after ``kaleido.start_sync_server``."""
    axes = PlotlyAxes(rng, new_style=new_style)
    texts = _fill(Hand(axes, rng, 10 ** rng.uniform(-1, 3.5), axes.dark))
    return Drawn(axes.png(), *texts)


def _fill(hand: Hand) -> tuple[str, str, str, str]:
    """Draw a figure of some kind: its caption, title, and the names of its axes."""
    weights = np.array(list(KINDS.values()))
    kind = list(KINDS)[hand.rng.choice(len(KINDS), p=weights / weights.sum())]
    return kind(hand), *_label(hand, axes=kind is not pie)


def _lay_out(figure: Figure, hand: Hand) -> None:
    """Margins by matplotlib or by hand, and perhaps a tint of the ground."""
    rng = hand.rng
    if hand.often(0.5):
        figure.set_layout_engine("constrained")
    else:
        figure.subplots_adjust(
            rng.uniform(0.1, 0.17), rng.uniform(0.11, 0.2), rng.uniform(0.9, 0.97), rng.uniform(0.85, 0.92)
        )
    if hand.often(0.2) and not hand.dark:
        figure.patch.set_facecolor(tuple(rng.uniform(0.88, 1, 3)))


def _look(rng: Generator) -> dict[str, object]:
    size, spines = rng.uniform(6.5, 10), bool(rng.random() < 0.7)
    return {
        "font.family": FONTS[rng.integers(len(FONTS))],
        "font.size": size,
        "axes.titlesize": size * rng.uniform(1.05, 1.35),
        "axes.labelsize": size,
        "xtick.labelsize": size * 0.9,
        "ytick.labelsize": size * 0.9,
        "axes.spines.top": spines,
        "axes.spines.right": spines,
        "axes.grid": bool(rng.random() < 0.35),
        "grid.alpha": rng.uniform(0.3, 1),
    }


def _label(hand: Hand, *, axes: bool) -> tuple[str, str, str]:
    """Write a title and the names of the axes, or leave them out; what was written, in small letters."""
    rng = hand.rng
    title = x_label = y_label = ""
    if rng.random() < 0.7:
        title = hand.pick(*THINGS) + hand.pick(
            "", "", f" by {hand.pick(*AXES)}", f" per {hand.pick(*AXES)}", " over time"
        )
        written = str(rng.choice((title, title.title(), title.capitalize())))
        hand.axes.set_title(written, loc=hand.pick("center", "center", "left"), fontweight=hand.pick("normal", "bold"))
    if axes and rng.random() < 0.5:
        x_label = hand.pick(*AXES)
        hand.axes.set_xlabel(x_label)
    if axes and rng.random() < 0.5:
        y_label = hand.pick(*THINGS)
        hand.axes.set_ylabel(y_label)
    return title, x_label, y_label
