"""Keys and values of one sequence, a cache for each layer.

The layer says which kind it needs; the cache owns appending, dropping what slid out of the window, and going
back (:meth:`SequenceCache.rewind`), so that a finished turn can be taken back and continued differently.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from jupyter_gemma.model.config import AttentionConfig, ModelConfig

#: Positions a sliding layer keeps beyond its window: how far a sequence can be rewound.
DEFAULT_SLACK = 256


class LayerCache:
    """Keys and values [kv_heads, positions, head_dim] of one layer, from position ``first`` on.

    With ``window`` None everything is kept; else at least the last ``window - 1 + slack`` positions.
    """

    def __init__(self, window: int | None, slack: int) -> None:
        self.keep = None if window is None else window - 1 + slack
        self.reach = None if window is None else window - 1
        self.first = 0
        self.size = 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add positions; returns the keys and values that their queries may see, as views.

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
        """The smallest length to which this layer can go back and still have its whole window."""
        return 0 if self.reach is None or self.first == 0 else self.first + self.reach

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        self.size = length - self.first

    @property
    def nbytes(self) -> int:
        """Bytes reserved."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers or ())

    def _room_for(self, like: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The buffers, with room for ``count`` more positions; what is no longer kept makes way first."""
        capacity = 0 if self._buffers is None else self._buffers[0].shape[1]
        if self._buffers is None or self.size + count > capacity:
            kept = self.size if self.keep is None else min(self.size, self.keep)
            self._buffers = self._moved(kept, like, self._capacity_for(kept + count, capacity))
            self.first += self.size - kept
            self.size = kept
        return self._buffers

    def _capacity_for(self, needed: int, capacity: int) -> int:
        """Doubling keeps the copies of a long sequence linear; a sliding layer needs no more than twice its keep."""
        limit = 2 * capacity if self.keep is None else min(2 * capacity, 2 * self.keep)
        return max(needed, limit, 64)

    def _moved(self, kept: int, like: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """New buffers that start with the last ``kept`` positions of the old ones."""
        heads, _, width = like.shape
        moved = (like.new_empty(heads, capacity, width), like.new_empty(heads, capacity, width))
        for new, old in zip(moved, self._buffers or (), strict=False):
            new[:, :kept] = old[:, self.size - kept : self.size]
        return moved


class SequenceCache:
    """One sequence: ``length`` positions computed so far, and a cache for each layer."""

    def __init__(self, layers: Iterable[AttentionConfig], slack: int = DEFAULT_SLACK) -> None:
        self.layers = [LayerCache(layer.window, slack) for layer in layers]
        self.length = 0

    @classmethod
    def for_model(cls, config: ModelConfig, slack: int = DEFAULT_SLACK) -> SequenceCache:
        """An empty cache for ``config``."""
        return cls((config.layer(index) for index in range(len(config.layers))), slack)

    def can_rewind(self, length: int) -> bool:
        """Whether the sequence can go back to ``length`` positions."""
        return length <= self.length and all(length >= layer.lowest_rewind() for layer in self.layers)

    def rewind(self, length: int) -> bool:
        """Go back to ``length`` positions; False, and nothing changed, where a layer has let go too much."""
        if not self.can_rewind(length):
            return False
        for layer in self.layers:
            layer.truncate(length)
        self.length = length
        return True

    @property
    def nbytes(self) -> int:
        """Bytes reserved by all layers."""
        return sum(layer.nbytes for layer in self.layers)
