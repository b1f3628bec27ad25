"""What a layer keeps, returns and lets go."""

from __future__ import annotations

import pytest
import torch

from jupyter_gemma.model.cache import LayerCache


def numbered(start: int, count: int) -> torch.Tensor:
    """[2 heads, count, 3] whose values are the positions."""
    return torch.arange(start, start + count, dtype=torch.float32).view(1, -1, 1).expand(2, count, 3)


@pytest.mark.parametrize("window", [None, 1, 8])
@pytest.mark.parametrize("counts", [[1] * 200, [50, 1, 1, 70, 3], [5, 300, 1]])
def test_returns_exactly_what_the_queries_may_see(window: int | None, counts: list[int]) -> None:
    cache, start = LayerCache(window, slack=4), 0
    for count in counts:
        keys, values = cache.append(numbered(start, count), -numbered(start, count))
        first = 0 if window is None else max(0, start - window + 1)
        assert torch.equal(keys, numbered(first, start + count - first))
        assert torch.equal(values, -keys)
        start += count


def test_a_sliding_layer_stays_small() -> None:
    cache = LayerCache(16, slack=8)
    for start in range(0, 5000):
        cache.append(numbered(start, 1), numbered(start, 1))
    assert cache.nbytes <= 2 * 2 * 3 * 4 * 64


def test_every_length_within_slack_can_be_reached() -> None:
    cache = LayerCache(16, slack=8)
    for start in range(0, 1000):
        cache.append(numbered(start, 1), numbered(start, 1))
        assert cache.lowest_rewind() <= max(0, start + 1 - 8)
