"""Keys and values of one sequence, a cache for each layer.

The layer says which kind it needs; the cache owns appending, dropping what slid out of the window, going back
(:meth:`SequenceCache.rewind`) and copying, so that a turn can be taken back, continued differently, or shared.

Full layers can go back anywhere. Sliding layers let go of what slid out of the window, so they can go back by some
slack; and to marks (:meth:`SequenceCache.mark`): of what is needed there a copy is saved before it slides out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jupyter_gemma.model.config import AttentionConfig, ModelConfig

#: Positions a sliding layer keeps beyond its window: how far a sequence can be rewound.
DEFAULT_SLACK = 256


@dataclass(frozen=True)
class _Tail:
    """The last positions before a mark: keys and values [kv_heads, positions, head_dim] from ``first`` on."""

    first: int
    buffers: tuple[Tensor, Tensor]


class LayerCache:
    """Keys and values [kv_heads, positions, head_dim] of one layer, from position ``first`` on.

    With ``window`` None everything is kept; else at least the last ``window - 1 + slack`` positions. ``dtype``: how
    they are stored; None: as they come.
    """

    def __init__(self, window: int | None, slack: int, dtype: torch.dtype | None = None) -> None:
        self.keep = None if window is None else window - 1 + slack
        self.reach = None if window is None else window - 1
        self.slack = slack
        self.dtype = dtype
        self.first = 0
        self.size = 0
        self.reserved = 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._marks: frozenset[int] = frozenset()
        self._tails: dict[int, _Tail] = {}

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions; returns the keys and values that their queries may see, as views in the stored dtype.

        Args:
            keys, values: [kv_heads, n, head_dim].

        Returns:
            [kv_heads, visible, head_dim] each; ``visible`` ends with the new positions.
        """
        count = keys.shape[1]
        visible = self.visible(count)
        all_keys, all_values = self._room_for(keys, count)
        end = self.size + count
        all_keys[:, self.size : end] = keys
        all_values[:, self.size : end] = values
        self.size = end
        return all_keys[:, end - visible : end], all_values[:, end - visible : end]

    def visible(self, count: int) -> int:
        """How many positions ``append`` of ``count`` will return."""
        return self.size + count if self.reach is None else min(self.size, self.reach) + count

    def lowest_rewind(self) -> int:
        """The smallest length to which this layer can go back step by step and still have its whole window."""
        return 0 if self.reach is None or self.first == 0 else self.first + self.reach

    def reachable(self, length: int) -> int:
        """The greatest length, at most ``length``, to which this layer can go back."""
        ranges = [(self.lowest_rewind(), self.first + self.size), *self._tail_ranges()]
        return max((min(length, last) for lowest, last in ranges if lowest <= length), default=0)

    def mark(self, positions: Iterable[int]) -> None:
        """Stay able to go back to these lengths; what was saved for others is let go."""
        if self.reach is not None:
            self._marks = frozenset(positions)
            self._tails = {mark: tail for mark, tail in self._tails.items() if mark in self._marks}

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on; ``reachable(length)`` must be ``length``."""
        if length == 0:
            self.first, self._buffers = 0, None
        elif not self.lowest_rewind() <= length:
            mark = self._mark_for(length)
            tail = self._tails.pop(mark)
            self.first, self._buffers = tail.first, tail.buffers
        self.size = length - self.first
        self._tails = {mark: tail for mark, tail in self._tails.items() if mark <= length}

    def copied(self, length: int) -> LayerCache:
        """A cache of its own with the first ``length`` positions; ``reachable(length)`` must be ``length``."""
        new = LayerCache(None, self.slack, self.dtype)
        new.keep, new.reach = self.keep, self.reach
        live = self.lowest_rewind() <= length
        held = _Tail(self.first, self._buffers or ()) if live else self._tails[self._mark_for(length)]  # type: ignore[arg-type]
        if length and held.buffers:
            new.first = held.first if self.keep is None else max(held.first, length - self.keep)
            new.size = length - new.first
            start = new.first - held.first
            keys, values = (buffer[:, start : start + new.size].clone() for buffer in held.buffers)
            new._buffers = keys, values
        return new
