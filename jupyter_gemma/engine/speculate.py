"""Drafts: guesses of the next tokens, which the model checks in one pass.

A pass reads all weights, whether it computes one row or several, so rows beside the first are cheap. Tokens are chosen
from the scores one after the other, exactly as without a draft; the first guess that was not chosen ends it. So an
answer is the same token by token, and drawn ones have the same chances: a guess t is kept with the chance p(t), and
what is drawn in its place is drawn from the rest (the rejection sampling of Leviathan et al. 2023, "Fast Inference from
Transformers via Speculative Decoding", for a draft that leaves nothing to chance).
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from jupyter_gemma.errors import BadOption
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.decoder import Gemma
from jupyter_gemma.model.drafter import Drafter, load_drafter
from jupyter_gemma.model.quant import QuantLinear

SpeculationChoice = Literal["auto", "off", "lookup", "drafter"]

#: Rows whose cost is measured. A draft has one token less: the first row is that of the last token.
ROWS = (1, 2, 4, 8, 16, 32)
#: Lengths of the ends that are looked for in the text before, the longest first.
GRAMS = (8, 4, 2)
#: Chance of a guess of which nothing is known yet, and how fast experience replaces it.
UNKNOWN, RATE = 0.5, 0.2
#: How fast what is not tried any more becomes unknown again.
FORGETTING = 0.02
#: Drafts that are right throughout must make answers so much faster to be tried at all.
WORTH = 1.2


@dataclass(frozen=True)
class Place:
    """Where a sequence stands: ``cache`` has all but the last token, ``hidden`` [hidden] is the state that chose it."""

    ids: Sequence[int]
    hidden: Tensor
    cache: SequenceCache


class Proposer(Protocol):
    """Guesses how one sequence goes on."""

    def grade(self, ids: Sequence[int]) -> int | None:
        """How well founded the next guess is, as a class whose chance is learned; None: there is none.

        ``ids`` are those of the last call and what was added since.
        """
        ...

    def propose(self, place: Place, count: int) -> list[int]:
        """``count`` tokens that may come next; called after ``grade``."""
        ...


class LookupDrafter:
    """Goes on as the text before did after the same last tokens: the longest of :data:`GRAMS`, the latest place."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._places: tuple[dict[int, int], ...] = tuple({} for _ in GRAMS)  # hash of a gram -> where it ended last
        self._read = 0
        self._found: tuple[int, int] | None = None
        self.grade(ids)

    def grade(self, ids: Sequence[int]) -> int | None:
        """The length of what was found again."""
        for end in range(self._read + 1, len(ids) + 1):
            self._found = self._note(ids, end)
        self._read = len(ids)
        return None if self._found is None else self._found[0]

    def propose(self, place: Place, count: int) -> list[int]:
        """What came after it; what repeats itself up to the end goes on repeating."""
        if self._found is None:
            return []
        start = self._found[1]
        period = len(place.ids) - start
        return [place.ids[start + step % period] for step in range(count)]

    def _note(self, ids: Sequence[int], end: int) -> tuple[int, int] | None:
        """Remember the grams that end at ``end``; the longest that was there before, and where it ended."""
        found = None
        for size, places in zip(GRAMS, self._places, strict=True):
            if end >= size:
                gram = hash(tuple(ids[end - size : end]))
                if found is None and gram in places:
                    found = size, places[gram]
                places[gram] = end
        return found


class ModelDrafter:
    """Drafts by the target's own small model."""

    def __init__(self, drafter: Drafter, target: Gemma) -> None:
        self._drafter, self._target = drafter, target

    def grade(self, ids: Sequence[int]) -> int | None:
        """It always has a guess."""
        return 0

    def propose(self, place: Place, count: int) -> list[int]:
        """A chain of its likeliest tokens."""
        return self._drafter.draft(self._target, place.ids[-1], place.hidden, place.cache, count)


class Speculator:
    """The drafts of one answer, as long as experience and costs say.

    Args:
        proposer: makes them.
        costs: of passes with :data:`ROWS` rows; that with one row is 1.
        link: cost of one drafted token.
    """

    def __init__(self, proposer: Proposer, costs: Sequence[float], link: float = 0.0) -> None:
        self._proposer, self._costs, self._link = proposer, costs, link
        self._chances: defaultdict[int, float] = defaultdict(lambda: UNKNOWN)
        self._grade = 0

    def draft(self, place: Place, most: int, company: int) -> list[int]:
        """At most ``most`` tokens; ``company`` sequences are computed together, this one included."""
        grade = self._proposer.grade(place.ids)
        if grade is None:
            return []
        self._grade = grade
        count = self._best(self._chances[grade], most, company)
        if count == 0:
            self._chances[grade] += FORGETTING * (UNKNOWN - self._chances[grade])
            return []
        return self._proposer.propose(place, count)

    def learn(self, drafted: int, accepted: int) -> None:
        """Of the last draft, so many tokens were right."""
        for right in (*[1.0] * accepted, *[0.0] * (accepted < drafted)):
            self._chances[self._grade] += RATE * (right - self._chances[self._grade])

    def _best(self, chance: float, most: int, company: int) -> int:
        """The length that gives the most tokens for its cost, if each guess is right with this chance."""

        def speed(count: int) -> float:
            tokens = sum(chance**step for step in range(count + 1))
            return tokens / (self._cost(company * (count + 1)) + company * count * self._link)

        return max((rows - 1 for rows in ROWS if rows - 1 <= most), key=speed, default=0)

    def _cost(self, rows: int) -> float:
        for size, cost in zip(ROWS, self._costs, strict=True):
            if rows <= size:
                return cost
        return self._costs[-1] * rows / ROWS[-1]


@dataclass(frozen=True)
class Speculation:
    """How the answers of a model are drafted. ``costs``: see :class:`Speculator`; without ``drafter`` by lookup."""

    target: Gemma
    costs: Sequence[float]
    drafter: Drafter | None = None

    def begin(self, ids: Sequence[int]) -> Speculator:
        """For an answer to the prompt ``ids``."""
        if self.drafter is None:
            return Speculator(LookupDrafter(ids), self.costs)
        link = _weight_bytes(self.drafter) / _weight_bytes(self.target)
        return Speculator(ModelDrafter(self.drafter, self.target), self.costs, link)


def plan_speculation(choice: SpeculationChoice, target: Gemma, folder: Path | None) -> Speculation | None:
    """How to draft for ``target``; None: not at all.

    Args:
        choice: "auto" takes the drafter if there is one, else lookup, and nothing where rows cost too much here.
        folder: of the drafter; None: there is none.

    Raises:
        BadOption: "drafter", and there is none.
        BadCheckpoint: it is not the target's.
    """
    if choice == "off":
        return None
    if choice == "drafter" and folder is None:
        raise BadOption(
            "This model has no drafter here.",
            "Pull it (for google/gemma-4-12B-it: jupyter gemma pull google/gemma-4-12B-it-assistant), or name its "
            "folder in the setting drafter.",
        )
    costs = measure_rows(target)
    if choice == "auto" and max(rows / cost for rows, cost in zip(ROWS, costs, strict=True)) < WORTH:
        return None
    if choice == "lookup" or folder is None:
        return Speculation(target, costs)
    drafter = load_drafter(folder, target, "int4" if isinstance(target.head, QuantLinear) else "none")
    drafter.use(target.ops)
    return Speculation(target, costs, drafter)


def measure_rows(model: Gemma) -> tuple[float, ...]:
    """What a pass with :data:`ROWS` rows costs, that with one row being 1: by one layer's MLP, the best of three."""
    middle = model.layers[len(model.layers) // 2]
    weight = model.norm.weight
    seconds = []
    for rows in ROWS:
        x = torch.ones(rows, model.config.hidden_size, dtype=weight.dtype, device=weight.device)
        seconds.append(min(_seconds(middle, x) for _ in range(3)))
    return tuple(max(1.0, cost / seconds[0]) for cost in seconds)


def _seconds(block: torch.nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    out: Tensor = block.get_submodule("mlp")(x)
    out[0, 0].item()  # a GPU is waited for
    return time.perf_counter() - start


def _weight_bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())
