"""Keys and values of one sequence, a cache for each layer.

The layer says which kind it needs; the cache owns appending, dropping what slid out of the window, going back
(:meth:`SequenceCache.rewind`) and copying, so that a turn can be taken back, continued differently, or shared.

A full layer can go back anywhere. A sliding layer has let go of what slid out of its window, so it can go back by some
slack, and to marks (:meth:`SequenceCache.mark`): what is needed there is saved before it slides out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jupyter_gemma.model.config import AttentionConfig, ModelConfig

#: Positions a sliding layer keeps beyond its window: how far a sequence can be rewound.
DEFAULT_SLACK = 256
_LEAST = 64
_SCALE_BYTES = 4


def stored(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """x [..., width] as a cache of ``dtype`` holds it: rounded, or, in int8, with its scale.

    Returns:
        int8 [..., width + 4]: x / scale, then the four bytes of the scale, max |x| / 127 in float32, for each row.
        Else [..., width]; None: as it is.
    """
    if dtype is None or x.dtype == dtype:
        return x
    if dtype != torch.int8:
        return x.to(dtype)
    biggest = x.float().abs().amax(-1, keepdim=True)
    inverse = torch.where(biggest > 0, 127 / biggest, 0)
    scale = (biggest / 127).flatten().view(torch.int8).view(*x.shape[:-1], _SCALE_BYTES)
    return torch.cat(((x * inverse).round().to(torch.int8), scale), dim=-1)


def restored(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """What was given to :func:`stored`, but for rounding: [..., width] in ``dtype``."""
    if rows.dtype != torch.int8:
        return rows.to(dtype)
    scale = rows[..., -_SCALE_BYTES:].contiguous().view(torch.float32)
    return (rows[..., :-_SCALE_BYTES] * scale).to(dtype)


def stored_bytes(width: int, dtype: torch.dtype) -> int:
    """Of a row of ``width`` values in a cache of ``dtype``."""
    return width * dtype.itemsize + (_SCALE_BYTES if dtype == torch.int8 else 0)


@dataclass(frozen=True)
class _Stretch:
    """Keys and values [kv_heads, positions, head_dim] from position ``first`` on, as :func:`stored`."""

    first: int
    buffers: tuple[Tensor, Tensor]


class LayerCache:
    """Keys and values [kv_heads, positions, head_dim] of one layer, from position ``first`` on.

    With ``window`` None everything is kept; else at least the last ``window - 1 + slack`` positions. ``dtype``: in
    which they are :func:`stored`; None: as they come. ``reserved``: positions to make room for at once.
    """

    def __init__(self, window: int | None, slack: int, dtype: torch.dtype | None = None) -> None:
        self.window, self.slack, self.dtype = window, slack, dtype
        self.keep = None if window is None else window - 1 + slack
        self.reach = None if window is None else window - 1
        self.first = 0
        self.size = 0
        self.reserved = 0
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._marks: frozenset[int] = frozenset()
        self._saved: dict[int, _Stretch] = {}

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions; returns the keys and values that their queries may see, as views of what is stored.

        Args:
            keys, values: [kv_heads, n, head_dim], stored already or not.

        Returns:
            [kv_heads, visible, head_dim] each, see :func:`restored`; ``visible`` ends with the new positions.
        """
        keys, values = stored(keys, self.dtype), stored(values, self.dtype)
        count = keys.shape[1]
        visible = self.visible(count)
        all_keys, all_values = self.extend(keys, count)
        end = self.size
        all_keys[:, end - count : end] = keys
        all_values[:, end - count : end] = values
        return all_keys[:, end - visible : end], all_values[:, end - visible : end]

    def extend(self, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Add ``count`` positions for the caller to write; returns the buffers [kv_heads, capacity, stored width].

        The new positions are the last of :attr:`size`. ``like``: [kv_heads, any, head_dim], stored already or not.
        """
        buffers = self._room_for(like, count)
        self.size += count
        return buffers

    def last(self, count: int | None) -> tuple[Tensor, Tensor]:
        """The last ``count`` positions (None: all), or as many as there are: [kv_heads, n, head_dim] each, stored."""
        keys, values = self._buffers or (torch.empty(0, 0, 0),) * 2
        start = 0 if count is None else max(0, self.size - count)
        return keys[:, start : self.size], values[:, start : self.size]

    def visible(self, count: int) -> int:
        """How many positions ``append`` of ``count`` will return."""
        return self.size + count if self.reach is None else min(self.size, self.reach) + count

    def reachable(self, length: int) -> int:
        """The greatest length, at most ``length``, to which this layer can go back with its whole window."""
        ranges = [(self._lowest(self.first), self.first + self.size)]
        ranges += [(self._lowest(stretch.first), mark) for mark, stretch in self._saved.items()]
        return max((min(length, last) for lowest, last in ranges if lowest <= length), default=0)

    def mark(self, positions: Iterable[int]) -> None:
        """Stay able to go back to these lengths; what was saved for others is let go."""
        self._marks = frozenset(positions)
        self._saved = {mark: stretch for mark, stretch in self._saved.items() if mark in self._marks}

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on. ``length`` must be reachable."""
        stretch = self._stretch_for(length)
        self.first, self._buffers = (stretch.first, stretch.buffers) if stretch else (0, None)
        self.size = length - self.first
        self._saved = {mark: kept for mark, kept in self._saved.items() if mark < length}

    def copy(self, length: int, reserved: int) -> LayerCache:
        """A cache of its own with the first ``length`` positions. ``length`` must be reachable."""
        new = LayerCache(self.window, self.slack, self.dtype)
        new.reserved = reserved
        if stretch := self._stretch_for(length):
            new.first = stretch.first if self.keep is None else max(stretch.first, length - self.keep)
            part = slice(new.first - stretch.first, length - stretch.first)
            keys, values = stretch.buffers
            new.append(keys[:, part], values[:, part])
        return new

    @property
    def nbytes(self) -> int:
        """Bytes reserved and saved."""
        held = [self._buffers or (), *(stretch.buffers for stretch in self._saved.values())]
        return sum(buffer.numel() * buffer.element_size() for buffers in held for buffer in buffers)

    def _lowest(self, first: int) -> int:
        """The smallest length for which positions from ``first`` on are the whole window."""
        return 0 if self.reach is None or first == 0 else first + self.reach

    def _stretch_for(self, length: int) -> _Stretch | None:
        """What holds the window before ``length``; None for an empty one."""
        if length == 0 or self._buffers is None:
            return None
        if self._lowest(self.first) <= length:
            return _Stretch(self.first, self._buffers)
        marks = (mark for mark, stretch in self._saved.items() if self._lowest(stretch.first) <= length <= mark)
        return self._saved[min(marks)]

    def _room_for(self, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The buffers, with room for ``count`` more positions; what is no longer kept makes way first."""
        capacity = 0 if self._buffers is None else self._buffers[0].shape[1]
        if self._buffers is None or self.size + count > capacity:
            kept = self.size if self.keep is None else min(self.size, self.keep)
            self._save(self.first + self.size - kept)
            self._buffers = self._moved(kept, like, self._capacity_for(kept + count, capacity))
            self.first += self.size - kept
            self.size = kept
        return self._buffers

    def _save(self, first: int) -> None:
        """Copy what the marks need, where letting go of the positions before ``first`` would take it away."""
        if self.reach is None or self._buffers is None or first == self.first:
            return
        margin = self.slack // 4
        for mark in self._marks - self._saved.keys():
            if self._lowest(self.first) <= mark <= self.first + self.size and mark - margin < first + self.reach:
                start = max(self.first, mark - margin - self.reach)
                keys, values = (buffer[:, start - self.first : mark - self.first].clone() for buffer in self._buffers)
                self._saved[mark] = _Stretch(start, (keys, values))

    def _capacity_for(self, needed: int, capacity: int) -> int:
        """Doubling keeps the copies of a long sequence linear; a sliding layer needs little beyond what it keeps."""
        wanted = max(self.reserved if needed <= self.reserved else 2 * capacity, _LEAST)
        return max(needed, wanted if self.keep is None else min(wanted, max(self.keep + self.slack, _LEAST)))

    def _moved(self, kept: int, like: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """New buffers that start with the last ``kept`` positions of the old ones."""
        rows = stored(like[:, :0], self.dtype)
        moved = tuple(rows.new_empty(rows.shape[0], capacity, rows.shape[2]) for _ in range(2))
        for new, old in zip(moved, self._buffers or (), strict=False):
            new[:, :kept] = old[:, self.size - kept : self.size]
        return moved[0], moved[1]


class SequenceCache:
    """One sequence: ``length`` positions computed so far, and a cache for each layer."""

    def __init__(
        self, layers: Iterable[AttentionConfig], slack: int = DEFAULT_SLACK, dtype: torch.dtype | None = None
    ) -> None:
        self.layers = [LayerCache(layer.window, slack, dtype) for layer in layers]
        self.length = 0

    @classmethod
    def for_model(
        cls, config: ModelConfig, slack: int = DEFAULT_SLACK, dtype: torch.dtype | None = None
    ) -> SequenceCache:
        """An empty cache for ``config``; ``dtype``: in which keys and values are stored, None: as they come."""
        return cls((config.layer(index) for index in range(len(config.layers))), slack, dtype)

    def reserve(self, positions: int) -> None:
        """Make room for so many positions when room is next made, instead of growing by and by."""
        for layer in self.layers:
            layer.reserved = positions

    def mark(self, positions: Iterable[int]) -> None:
        """Stay able to go back to these lengths, and a quarter of the slack before each; other marks are let go."""
        marks = frozenset(positions)
        for layer in self.layers:
            layer.mark(marks)

    def reachable(self, length: int) -> int:
        """The greatest length, at most ``length``, to which the sequence can go back."""
        best = min(length, self.length)
        while (lower := min(layer.reachable(best) for layer in self.layers)) < best:
            best = lower
        return best

    def can_rewind(self, length: int) -> bool:
        """Whether the sequence can go back to ``length`` positions."""
        return self.reachable(length) == length

    def rewind(self, length: int) -> bool:
        """Go back to ``length`` positions; False, and nothing changed, where a layer has let go too much."""
        if not self.can_rewind(length):
            return False
        for layer in self.layers:
            layer.truncate(length)
        self.length = length
        return True

    def copy(self, length: int, reserved: int = 0) -> SequenceCache:
        """A sequence of its own with the first ``length`` positions, which must be reachable; no marks.

        ``reserved``: positions to make room for.
        """
        new = SequenceCache(())
        new.layers = [layer.copy(length, reserved) for layer in self.layers]
        new.length = length
        return new

    @property
    def nbytes(self) -> int:
        """Bytes reserved by all layers."""
        return sum(layer.nbytes for layer in self.layers)


def cache_bytes(config: ModelConfig, positions: int, *, chunk: int, marks: Sequence[int], dtype: torch.dtype) -> int:
    """The most bytes that a sequence for which ``positions`` were reserved takes.

    Args:
        chunk: the most positions appended at once.
        marks: lengths it stays able to go back to.
        dtype: in which keys and values are stored.
    """
    total = 0
    for index in range(len(config.layers)):
        shape = config.layer(index)
        held = max(positions, _LEAST)
        if shape.window is not None:
            keep = shape.window - 1 + DEFAULT_SLACK
            most = keep + max(chunk, DEFAULT_SLACK)
            held = held if held <= most else most + sum(min(mark, keep) for mark in marks)
        total += held * 2 * shape.kv_heads * stored_bytes(shape.head_dim, dtype)
    return total
