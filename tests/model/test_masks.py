"""The mask rule, against a loop that reads like the specification."""

from __future__ import annotations

import pytest
import torch

from jupyter_gemma.model.masks import attention_mask


def by_the_book(start: int, count: int, first: int, window: int | None, blocks: list[int]) -> torch.Tensor:
    rows = []
    for query in range(start, start + count):
        row = []
        for key in range(first, start + count):
            same = key >= start and blocks[query - start] >= 0 and blocks[query - start] == blocks[key - start]
            if window is None:
                row.append(key <= query)
            else:
                row.append((key <= query or same) and key > query - window)
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("start", "count"), [(0, 9), (7, 9), (3, 1)])
def test_matches_the_specification(window: int | None, start: int, count: int) -> None:
    blocks = [-1, 0, 0, 0, -1, 1, 1, -1, 1][:count]
    first = 0 if window is None else max(0, start - window + 1)
    mask = attention_mask(start, count, first, window, torch.tensor(blocks))
    expected = by_the_book(start, count, first, window, blocks)
    assert torch.equal(torch.ones_like(expected) if mask is None else mask, expected)


def test_one_row_needs_no_mask() -> None:
    assert attention_mask(30, 1, 30 - 7, 8) is None
    assert attention_mask(30, 1, 0, None) is None
