"""Who may look at whom.

Full layers are causal. Sliding layers see the last ``window`` positions, the query included; on them the
patches of one picture also see each other in both directions, still clipped by the window:
``(causal OR same block) AND window`` (Gemma 4 Unified; the window clips the past only, as in transformers'
``sliding_window_overlay``). Audio is causal everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention_mask(
    start: int, count: int, first_key: int, window: int | None, blocks: Tensor | None = None
) -> Tensor | None:
    """Mask for queries at positions ``start .. start+count-1`` over keys ``first_key .. start+count-1``.

    Args:
        start: position of the first query.
        count: number of queries.
        first_key: position of the first key.
        window: None for a full layer.
        blocks: int64 [count], the picture each query belongs to, -1 for none. A picture never lies in two
            spans, so only keys among these very queries can be of the same block.

    Returns:
        bool [count, keys], True where a query may look; None if everything is allowed.
    """
    keys = start + count - first_key
    if count == 1 and (window is None or keys <= window):
        return None
    query = torch.arange(start, start + count).unsqueeze(1)
    key = torch.arange(first_key, start + count).unsqueeze(0)
    mask = key <= query
    if window is None:
        return mask
    if blocks is not None:
        same = (blocks.unsqueeze(1) == blocks.unsqueeze(0)) & (blocks >= 0)
        mask[:, keys - count :] |= same
    return mask & (key > query - window)


def looks_ahead(blocks: Tensor) -> tuple[int, ...]:
    """How many of the queries after it each query sees on a sliding layer: the rest of its picture.

    Args:
        blocks: int64 [count], as for :func:`attention_mask`.
    """
    numbers = blocks.tolist()
    last = {block: place for place, block in enumerate(numbers)}
    return tuple(0 if block < 0 else last[block] - place for place, block in enumerate(numbers))
