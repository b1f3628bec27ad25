"""``python -m jupyter_gemma.bench.plot RESULT.json PICTURE.png``: speed by sequences at once and by context."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(figures: Mapping[str, Any], picture: Path) -> None:
    """Draw what ``decode``, ``batch`` and ``compare`` have found.

    Args:
        figures: the JSON object of a run; series that are not in it are left out.
        picture: the file to write; its suffix says in which format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_rows, by_context = figure.subplots(1, 2)
    compared = figures.get("compare.tokens_per_s", {})
    series = {"jupyter-gemma": figures.get("batch.tokens_per_s", {}), "llama.cpp": compared.get("llama.cpp", {})}
    for name, points in series.items():
        _line(by_rows, points, name)
    by_rows.set(xlabel="sequences at once", ylabel="tokens a second, all together", ylim=(0, None))
    by_rows.legend()
    _line(by_context, figures.get("decode.tokens_per_s_by_context", {}), "jupyter-gemma")
    if "decode.read_gb_per_s" in figures:
        limit = figures["decode.read_gb_per_s"] / figures["decode.weights_gb"]
        by_context.axhline(limit, color="grey", linestyle=":", label="reading all weights")
    by_context.set(xlabel="context, tokens", ylabel="tokens a second, one sequence", ylim=(0, None))
    by_context.legend()
    figure.savefig(picture, dpi=150)


def _line(axes: Any, points: Mapping[str, float], name: str) -> None:
    axes.plot([int(key) for key in points], list(points.values()), marker="o", label=name)


if __name__ == "__main__":
    plot(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
