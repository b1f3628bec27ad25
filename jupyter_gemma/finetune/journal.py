"""What a run tells: a line of ``log.jsonl`` a step, the curve ``loss.svg``, and TensorBoard where it is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOG, PLOT = "log.jsonl", "loss.svg"
_WIDTH, _HEIGHT, _EDGE = 640, 240, 40


class Journal:
    """The log of a run in ``folder``; lines of steps from ``step`` on, which were not kept, are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / LOG
        self._plot = folder / PLOT
        self.entries = [entry for entry in read_log(self.path) if entry["step"] <= step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries), encoding="utf-8")
        self._board = _board(folder)

    def note(self, entry: dict[str, Any]) -> None:
        """Write a step down: ``step``, ``loss`` (nats a token), ``rate``, ``tokens``, ``seconds``; maybe ``valid``."""
        self.entries.append(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for key in ("loss", "valid", "rate"):
            if self._board is not None and key in entry:
                self._board.add_scalar(key, entry[key], entry["step"])

    def draw(self) -> None:
        """Write the curve so far."""
        self._plot.write_text(curve(self.entries), encoding="utf-8")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a last line that a killed process left unfinished is none."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))


def curve(entries: Sequence[dict[str, Any]]) -> str:
    """Loss by step as SVG: a grey line for training, a blue one for what was held out."""
    top = max((entry["loss"] for entry in entries), default=1.0)
    last = max((entry["step"] for entry in entries), default=1)

    def line(key: str, colour: str) -> str:
        points = " ".join(
            f"{_EDGE + (_WIDTH - 2 * _EDGE) * entry['step'] / last:.1f},"
            f"{_HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * min(1.0, entry[key] / top):.1f}"
            for entry in entries
            if key in entry
        )
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    words = (
        f'<text x="4" y="{_EDGE}">{top:.2f}</text><text x="4" y="{_HEIGHT - _EDGE}">0</text>'
        f'<text x="{_WIDTH - 2 * _EDGE}" y="{_HEIGHT - 12}">step {last}</text>'
        f'<text x="{_EDGE}" y="20">loss: training (grey), held out (blue)</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12">{line("loss", "#888")}{line("valid", "#1f77b4")}{words}</svg>\n'
    )
