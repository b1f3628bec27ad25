"""Draw what models reach beside what was aimed at, from the last lines that ``jupyter gemma eval NAME`` printed.

``python -m examples.demo_model.plot OUT.png before=BEFORE.txt after=AFTER.txt``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

#: A figure of ``jupyter gemma eval``, its name in the plot, and the aim; word error rates are better when smaller.
AIMS = {
    "eval.chart_type": ("kind of chart", 0.98),
    "eval.trend": ("trend or form", 0.90),
    "eval.extreme": ("extreme", 0.85),
    "eval.words": ("words of titles and axes", 0.85),
    "eval.tables": ("tables", 0.95),
    "eval.wer_known": ("words wrong, known voices (less is better)", 0.05),
    "eval.wer_unknown": ("words wrong, new voices (less is better)", 0.12),
}
COLORS = ("#9aa5b1", "#4c72b0", "#55a868")


def main() -> None:
    """Read the command line and draw."""
    out, *given = sys.argv[1:]
    reached = {}
    for pair in given:
        name, _, path = pair.partition("=")
        reached[name] = json.loads(Path(path).read_text(encoding="utf-8").splitlines()[-1])
    draw(reached).savefig(out, dpi=100)


def draw(reached: dict[str, dict[str, float]]) -> Figure:
    """Bars of each model below one another for every figure, with a line at the aim."""
    figure = Figure(figsize=(7.5, 1.2 + 0.28 * len(AIMS) * (len(reached) + 0.6)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(AIMS), dtype=float)
    height = 0.8 / len(reached)
    for index, (name, figures) in enumerate(reached.items()):
        values = [100 * figures[key] for key in AIMS]
        lying = axes.barh(places + index * height, values, height * 0.92, label=name, color=COLORS[index])
        axes.bar_label(lying, fmt="%.1f", padding=3, fontsize=8)
    aims = [100 * aim for _, aim in AIMS.values()]
    axes.vlines(aims, places - height / 2, places + 0.8 - height / 2, color="black", lw=1.5, label="aim")
    axes.set_yticks(places + 0.4 - height / 2, [name for name, _ in AIMS.values()])
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("%")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(reached) + 1, frameon=False, fontsize=9)
    return figure


if __name__ == "__main__":
    main()
