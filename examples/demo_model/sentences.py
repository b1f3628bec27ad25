"""What the demo model hears: digits, numbers and notebook commands of 112 words, by a small grammar.

One sentence in twenty is held out by its own digest, whatever the seed, so no training set can hold it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from numpy.random import Generator


def _words(text: str) -> list[str]:
    return text.split()


DIGITS = _words("zero one two three four five six seven eight nine")
TEENS = _words("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")
SLOTS = {
    "file_verb": _words("open close save delete copy print"),
    "row_verb": _words("delete select copy"),
    "thing": _words("file table chart notebook window cell image column"),
    "statistic": _words("mean median sum maximum minimum count"),
    "chart": _words("line bar scatter pie box"),
    "way": _words("up down left right"),
    "zoom": _words("in out"),
    "color": _words("red blue green orange purple black"),
    "unit": _words("seconds minutes hours"),
    "side": _words("above below"),
    "which": _words("first last next previous"),
    "end": _words("first last"),
    "short": (
        *("undo", "redo", "paste", "help", "stop", "start", "yes", "no"),
        *("explain this plot", "next cell", "previous cell", "run all cells"),
    ),
}
COMMANDS = (
    "{file_verb} the {thing}",
    "plot column {number}",
    "plot column {number} and column {number}",
    "show the {statistic} of column {number}",
    "make a {chart} chart",
    "make a {chart} chart of column {number}",
    "sort by column {number}",
    "go to cell {number}",
    "scroll {way}",
    "zoom {zoom}",
    "run cell {number}",
    "{row_verb} row {number}",
    "set the color to {color}",
    "stop after {number} {unit}",
    "filter rows where column {number} is {side} {number}",
    "{short}",
    "load the {which} {thing}",
    "group by column {number}",
    "show the {end} {number} rows",
)
# How often a sentence is: one word, a command, digits, a number, words in any order.
KINDS, SHARES = ("word", "command", "digits", "number", "words"), (0.12, 0.43, 0.25, 0.10, 0.10)


def vocabulary() -> list[str]:
    """Every word that a sentence can have, sorted."""
    fixed = re.sub(r"\{\w+\}", "", " ".join(COMMANDS))
    slots = " ".join(word for words in SLOTS.values() for word in words)
    return sorted({*fixed.split(), *slots.split(), *DIGITS, *TEENS, *TENS, "hundred"})


def is_held_out(sentence: str) -> bool:
    """Whether training must not hear ``sentence``; short ones are too few to be held out."""
    digest = hashlib.md5(sentence.encode(), usedforsecurity=False).hexdigest()
    return len(sentence.split()) >= 3 and int(digest, 16) % 20 == 0


def sentence(rng: Generator, *, held_out: bool) -> str:
    """A sentence of the training set, or one that is held out of it."""
    while True:
        said = _any(rng)
        if is_held_out(said) == held_out:
            return said


def _any(rng: Generator) -> str:
    kind = KINDS[rng.choice(len(KINDS), p=SHARES)]
    if kind == "command":
        return _command(rng)
    if kind == "number":
        return _number(rng)
    if kind == "digits":
        return " ".join(_pick(rng, DIGITS) for _ in range(rng.integers(1, 9)))
    count = 1 if kind == "word" else rng.integers(2, 6)
    return " ".join(_pick(rng, vocabulary()) for _ in range(count))


def _command(rng: Generator) -> str:
    def fill(slot: re.Match[str]) -> str:
        return _number(rng) if slot[1] == "number" else _pick(rng, SLOTS[slot[1]])

    return re.sub(r"\{(\w+)\}", fill, _pick(rng, COMMANDS))


def _number(rng: Generator) -> str:
    """Up to three digits in words; small ones more often."""
    kind = rng.choice(4, p=(0.4, 0.15, 0.35, 0.1))
    if kind == 0:
        return _pick(rng, DIGITS)
    if kind == 1:
        return _pick(rng, TEENS)
    if kind == 2:
        return _pick(rng, TENS) if rng.random() < 0.25 else _two_digits(rng)
    hundreds = f"{_pick(rng, DIGITS[1:])} hundred"
    if rng.random() < 0.4:
        return hundreds
    return f"{hundreds} {_pick(rng, TEENS + TENS) if rng.random() < 0.5 else _two_digits(rng)}"


def _two_digits(rng: Generator) -> str:
    return f"{_pick(rng, TENS)} {_pick(rng, DIGITS[1:])}"


def _pick(rng: Generator, words: Sequence[str]) -> str:
    return words[rng.integers(len(words))]
