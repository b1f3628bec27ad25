"""Tab completion after ``%gemma``: options and their values, slash commands and their words, variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from jupyter_gemma.notebook.commands import COMMANDS
from jupyter_gemma.notebook.options import FLAGS

_MAGIC = re.compile(r"^\s*(?:[\w.,\[\]'\" ]+=\s*)?%{1,2}gemma(?=\s)")
_EXPRESSION_FLAGS = ("-w", "--with", "--schema")


def matches(text: str, variables: Iterable[str], models: Sequence[str] = ()) -> tuple[str, list[str]] | None:
    """The word before the cursor and what it can become; None where ``%gemma`` has nothing to say.

    Args:
        text: the cell up to the cursor.
        variables: names of the user.
        models: names of models, for ``-m``.
    """
    magic = _MAGIC.match(text)
    if magic is None:
        return None
    rest = text[magic.end() :]
    word = re.search(r"[^\s,{(\[]*$", rest)
    typed = word[0] if word else ""
    before = rest[: len(rest) - len(typed)]
    found = _candidates(typed, before, variables, models)
    return (typed, sorted({each for each in found if each.startswith(typed)})) if found else None


def _candidates(typed: str, before: str, variables: Iterable[str], models: Sequence[str]) -> list[str]:
    words = before.split()
    last = words[-1].rstrip(",") if words else ""
    command = next((word[1:] for word in words if word.startswith("/") and word[1:] in COMMANDS), "")
    if before.rstrip(" ").endswith(("{", "(", "[")) or last in _EXPRESSION_FLAGS or before.endswith(","):
        return list(variables)
    if command:
        return [*COMMANDS[command].words, *variables]
    if last in ("-m", "--model"):
        return list(models)
    chosen = next((flag.choices for flag in FLAGS if last in flag.names), ())
    if chosen:
        return list(chosen)
    if typed.startswith("-"):
        return [name for flag in FLAGS for name in flag.names]
    return [f"/{name}" for name in COMMANDS] if typed.startswith("/") else []
