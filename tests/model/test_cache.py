"""What a layer keeps, returns and lets go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_gemma.model.cache import LayerCache, SequenceCache, cache_bytes, restored
from jupyter_gemma.model.config import config_from_hf


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
        for back in range(9):
            assert cache.reachable(max(0, start + 1 - back)) == max(0, start + 1 - back)


def test_bfloat16_is_stored_and_returned() -> None:
    cache = LayerCache(8, 4, torch.bfloat16)
    keys, _ = cache.append(numbered(0, 20), numbered(0, 20))
    assert keys.dtype == torch.bfloat16
    assert cache.nbytes == 2 * 2 * 64 * 3 * 2


def test_int8_rows_keep_a_127th_of_their_greatest_value() -> None:
    x = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 9, 30).unsqueeze(-1)
    x[0, 3] = 0.0
    cache = LayerCache(8, 4, torch.int8)
    keys, _ = cache.append(x, x)
    assert keys.shape == (2, 30, 68)
    off = (restored(keys, torch.float32) - x).abs().amax(-1)
    assert (off <= x.abs().amax(-1) / 127 * 0.501).all()
    # A copy holds the same bytes: nothing is rounded a second time.
    assert torch.equal(cache.copy(30, 0).last(8)[0], cache.last(8)[0])


def check(cache: LayerCache, length: int) -> None:
    """Going on from ``length`` sees exactly the window before it."""
    keys, _ = cache.append(numbered(length, 3), numbered(length, 3))
    first = 0 if cache.reach is None else max(0, length - cache.reach)
    assert torch.equal(keys, numbered(first, length + 3 - first))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_history_of_going_on_back_and_copying(data: st.DataObject) -> None:
    """Whatever was done, what is reachable is whole; marks stay reachable with their margin."""
    cache = LayerCache(data.draw(st.sampled_from([None, 1, 8, 16])), slack=8)
    length = 0
    marks: dict[int, int] = {}  # mark -> the lowest length before it that must stay reachable
    for _ in range(data.draw(st.integers(1, 12))):
        count = data.draw(st.integers(1, 40))
        marks = {mark: lowest for mark, lowest in marks.items() if mark <= length}
        mark = length + data.draw(st.integers(0, count))
        marks.setdefault(mark, max(length, mark - 2))
        cache.mark(marks)
        cache.append(numbered(length, count), numbered(length, count))
        length += count
        assert all(cache.reachable(goal) == goal for mark in marks for goal in range(marks[mark], mark + 1))
        back = cache.reachable(data.draw(st.integers(0, length)))
        check(cache.copy(back, 0), back)
        if data.draw(st.booleans()):
            cache.truncate(back)
            length = back
    check(cache, length)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("reserved", [10, 300, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_the_predicted_bytes_hold(chunk: int, reserved: int, dtype: torch.dtype, gemma3_raw: dict[str, Any]) -> None:
    config = config_from_hf(gemma3_raw)
    cache = SequenceCache.for_model(config, dtype=dtype)
    cache.reserve(reserved)
    marks = (reserved // 3, reserved // 2)
    cache.mark(marks)
    for start in range(0, reserved, chunk):
        for index, layer in enumerate(cache.layers):
            shape = config.layer(index)
            new = torch.zeros(shape.kv_heads, min(chunk, reserved - start), shape.head_dim)
            layer.append(new, new)
        assert cache.nbytes <= cache_bytes(config, reserved, chunk=chunk, marks=marks, dtype=dtype)
