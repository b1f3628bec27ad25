"""What a benchmark has found: a table for people and figures for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """One benchmark's result. ``figures``: by dotted name; ``rows``: cells under ``columns``; ``notes``: sentences."""

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def lines(self) -> list[str]:
        """The table as text: the first column to the left, numbers to the right."""
        lines = ["", self.title]
        if self.rows:
            cells = [list(self.columns), *map(list, self.rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines += ["  " + _aligned(row, widths) for row in cells]
        return lines + [f"  {note}" for note in self.notes]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])


def milliseconds(seconds: float) -> str:
    """For a table."""
    return f"{1000 * seconds:.2f}" if seconds < 0.01 else f"{1000 * seconds:.1f}"


def rounded(value: float) -> float:
    """Four digits: more would be noise."""
    return float(f"{value:.4g}")
