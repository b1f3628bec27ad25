"""Timing two or more ways of doing something side by side, so that other work on the machine hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Does its work once and returns the seconds that count.
Side = Callable[[], float]


@dataclass(frozen=True)
class Times:
    """Seconds of each run."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """What to expect."""
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        """Without disturbance by others."""
        return min(self.seconds)


def timed(work: Callable[[], object]) -> Side:
    """A side that counts all of ``work``."""

    def side() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return side


def alternate(
    sides: Mapping[str, Side], seconds: float, *, least: int = 3, most: int = 50, warm_up: int = 1, pause: float = 0.0
) -> dict[str, Times]:
    """Run all sides in turn, again and again, every other time in the opposite order.

    Args:
        seconds: that it may take; at least ``least`` and at most ``most`` rounds are made all the same.
        warm_up: rounds before these, which do not count.
        pause: seconds between two sides, for threads of the last one that wait for more work without sleeping.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    order = list(sides)
    for number in range(warm_up + most):
        if number >= warm_up + least and time.perf_counter() - start > seconds:
            break
        for name in order:
            time.sleep(pause)
            taken = sides[name]()
            if number >= warm_up:
                found[name].append(taken)
        order.reverse()
    return {name: Times(tuple(taken)) for name, taken in found.items()}
