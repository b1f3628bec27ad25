"""Small tables in the demo model's form ("columns", see the model's README), with questions that have one answer."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

NUMBERS = (
    *("age", "income", "price", "score", "height", "weight", "sales", "profit", "cost", "speed", "time", "year"),
    *("rating", "distance", "temperature", "rain", "visits", "clicks", "units", "tax", "salary", "hours", "pages"),
    *("views", "stock"),
)
TEXTS = ("city", "name", "country", "color", "brand", "team", "genre", "status", "product", "region")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
STATISTICS = ("minimum", "mean", "maximum")
SIZES = ((5, 99), (100, 999), (1000, 9999))


@dataclass(frozen=True)
class Table:
    """``numbers``: minimum, mean and maximum by column; ``texts``: unique values by column; lines as they stand."""

    rows: int
    numbers: dict[str, tuple[int, int, int]]
    texts: dict[str, int]
    order: tuple[str, ...]

    def __str__(self) -> str:
        """As the notebook writes a frame for the demo model."""
        return "\n".join([f"rows {self.rows}", *map(self._line, self.order)])

    def _line(self, name: str) -> str:
        if name in self.texts:
            return f"{name}: text {self.texts[name]} unique"
        low, mean, high = self.numbers[name]
        return f"{name}: mean {mean} min {low} max {high}"

    def questions(self, rng: Generator) -> list[tuple[str, str]]:
        """Every kind of question once, and its answer; one with two right answers is left out."""
        asked = [self._extreme(rng, "largest"), self._extreme(rng, "smallest"), self._lookup(rng)]
        text_names = [name for name in self.order if name in self.texts]
        return [
            *(pair for pair in asked if pair is not None),
            ("How many rows are there?", str(self.rows)),
            ("How many columns are there?", COUNTS[len(self.order)]),
            ("Which columns are text?", " and ".join(text_names) or "none"),
        ]

    def _extreme(self, rng: Generator, which: str) -> tuple[str, str] | None:
        place = int(rng.integers(len(STATISTICS)))
        ranked = sorted(self.numbers, key=lambda name: self.numbers[name][place], reverse=which == "largest")
        first, second = (self.numbers[name][place] for name in ranked[:2])
        return None if first == second else (f"Which column has the {which} {STATISTICS[place]}?", ranked[0])

    def _lookup(self, rng: Generator) -> tuple[str, str]:
        place, name = int(rng.integers(len(STATISTICS))), rng.choice(list(self.numbers))
        return f"What is the {STATISTICS[place]} of {name}?", str(self.numbers[name][place])


def draw_table(rng: Generator) -> Table:
    """Two to five columns of numbers and none to two of text, in any order."""
    names = [str(name) for name in rng.permutation(NUMBERS)[: rng.integers(2, 6)]]
    texts = [str(name) for name in rng.permutation(TEXTS)[: rng.choice((0, 0, 1, 1, 2))]]
    low, high = SIZES[rng.integers(len(SIZES))]
    return Table(
        int(rng.integers(low, high + 1)),
        {name: _statistics(rng) for name in names},
        {name: int(rng.integers(2, 61)) for name in texts},
        tuple(str(name) for name in rng.permutation(names + texts)),
    )


def _statistics(rng: Generator) -> tuple[int, int, int]:
    """Minimum, mean and maximum, all different; two digits and three are more frequent than four."""
    while True:
        sizes = rng.choice(len(SIZES), size=3, p=(0.4, 0.4, 0.2))
        values = sorted({int(rng.integers(max(SIZES[size][0] // 5, 1), SIZES[size][1] + 1)) for size in sizes})
        if len(values) == 3:
            return values[0], values[1], values[2]
