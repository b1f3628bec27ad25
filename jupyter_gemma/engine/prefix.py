"""Conversations that were computed, kept for those that begin alike.

Prompts are compared by their keys (see ``prompt.BuiltPrompt``): token ids, and digests of pictures and clips. What was
generated before counts as well; where its re-rendered text has other tokens (thoughts are dropped, white space is
trimmed) the common prefix just ends there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from jupyter_gemma.model.cache import SequenceCache

#: A shorter common prefix is not worth it: every prompt begins with the same few tokens.
LEAST = 16


@dataclass(eq=False)
class Kept:
    """A computed sequence: its ``keys`` int64 [length], who asked, and where its last question begins (``turn``)."""

    keys: Tensor
    cache: SequenceCache
    client: str = ""
    turn: int = 0
    nbytes: int = 0


@dataclass(frozen=True)
class Match:
    """The common prefix with ``kept`` is ``shared`` long; its cache can go back to ``length``, at most that."""

    kept: Kept
    shared: int
    length: int


def shared(first: Tensor, second: Tensor) -> int:
    """Length of the longest common prefix."""
    count = min(len(first), len(second))
    different = torch.nonzero(first[:count] != second[:count])
    return int(different[0]) if len(different) else count


class PrefixPool:
    """Kept sequences, the one used last at the end. ``nbytes`` is what they take."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, kept: Kept) -> None:
        """Keep one more; it belongs to the pool now."""
        kept.nbytes = kept.cache.nbytes
        self._kept.append(kept)
        self.nbytes += kept.nbytes

    def best(self, keys: Tensor, running: Iterable[Kept] = ()) -> Match | None:
        """Where most of a prompt with ``keys`` is computed already: here, or in a sequence that runs."""
        found = [match for kept in [*self._kept, *running] if (match := _match(keys, kept)).length >= LEAST]
        return max(found, key=lambda match: match.length, default=None)

    def draw(self, match: Match, client: str, room: int, reserved: int) -> SequenceCache | None:
        """A cache with the first ``match.length`` positions, for the caller alone.

        It is taken over where nobody can want the rest: there is none, or it is the last question, now asked
        differently, of the same named client. Else it is copied. Without the memory for a copy the pool's own is
        taken over, and None returned for one that runs.

        Args:
            room: bytes the pool may take beside the copy.
            reserved: positions the copy makes room for.
        """
        kept = match.kept
        mine = kept in self._kept
        rest_is_spare = match.length == kept.cache.length or (
            client != "" and client == kept.client and match.length >= kept.turn
        )
        if not (mine and rest_is_spare):
            if mine:
                self._kept.remove(kept)
                self._kept.append(kept)
            self.shrink(room, spared=kept)
            if self.nbytes <= room:
                return kept.cache.copy(match.length, reserved)
        if not mine:
            return None
        self._drop(kept)
        kept.cache.rewind(match.length)
        return kept.cache

    def shrink(self, room: int, spared: Kept | None = None) -> None:
        """Let go of the oldest until the rest takes at most ``room`` bytes."""
        for kept in list(self._kept):
            if self.nbytes <= room:
                return
            if kept is not spared:
                self._drop(kept)

    def _drop(self, kept: Kept) -> None:
        self._kept.remove(kept)
        self.nbytes -= kept.nbytes


def _match(keys: Tensor, kept: Kept) -> Match:
    common = shared(keys, kept.keys)
    return Match(kept, common, kept.cache.reachable(common))
