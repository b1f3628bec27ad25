"""Rounding to four and eight bits, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jupyter_gemma.model.quant import (
    GROUP,
    QuantEmbedding,
    Quantized,
    dequantize,
    from_bytes,
    from_nibbles,
    quantize,
    to_rows,
)


@pytest.fixture
def weight() -> torch.Tensor:
    weight = torch.randn(80, 3 * GROUP, generator=torch.Generator().manual_seed(0))
    weight[3, :GROUP] = 0
    return weight


@pytest.mark.parametrize(("kind", "steps"), [("int4", 8), ("int8", 127)])
def test_error_is_within_half_a_step(weight: torch.Tensor, kind: str, steps: int) -> None:
    restored = dequantize(quantize(weight, kind))
    groups = weight.view(80, 3, GROUP)
    step = groups.abs().amax(-1, keepdim=True) / steps
    # int4 clips the values next to +peak at 7 steps: one whole step; the scale itself is rounded to fp16.
    bound = (1.0 if kind == "int4" else 0.5) * step + groups.abs().amax(-1, keepdim=True) * 2**-10
    assert ((restored.view(80, 3, GROUP) - groups).abs() <= bound).all()
    assert (restored[3, :GROUP] == 0).all()


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_rounding_twice_changes_nothing(weight: torch.Tensor, kind: str) -> None:
    once = dequantize(quantize(weight, kind))
    torch.testing.assert_close(dequantize(quantize(once, kind)), once, rtol=2**-10, atol=1e-7)


def test_agrees_with_ggml_about_nibbles_and_scales(weight: torch.Tensor) -> None:
    gguf = pytest.importorskip("gguf")
    for kind, theirs in (("int4", gguf.GGMLQuantizationType.Q4_0), ("int8", gguf.GGMLQuantizationType.Q8_0)):
        blob = gguf.quants.quantize(weight.numpy(), theirs)
        expected = torch.from_numpy(gguf.quants.dequantize(blob, theirs))
        ours = dequantize(quantize(weight, kind))
        step = weight.view(80, 3, GROUP).abs().amax(-1) / (8 if kind == "int4" else 127)
        # Ties and the fp16 scale may round the other way: never more than one step, and hardly ever.
        off = (ours - expected).view(80, 3, GROUP).abs()
        assert (off <= 1.01 * step.unsqueeze(-1)).all()
        assert (off > 0.01 * step.unsqueeze(-1)).float().mean() < 0.01


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_embedding_expands_only_the_rows_asked_for(weight: torch.Tensor, kind: str) -> None:
    quantized: Quantized = quantize(weight, kind)
    table = QuantEmbedding(80, 3 * GROUP, kind)
    table.tiles.data = quantized.tiles
    ids = torch.tensor([3, 79, 3, 16])
    assert torch.equal(table(ids), dequantize(quantized)[ids])


@pytest.mark.parametrize(("kind", "build"), [("int4", from_nibbles), ("int8", from_bytes)])
def test_rows_and_tiles_hold_the_same(weight: torch.Tensor, kind: str, build: Any) -> None:
    tiles = quantize(weight, kind)
    rows, scale = to_rows(tiles)
    assert rows.shape == (80, 3, 16 if kind == "int4" else 32)
    assert torch.equal(build(rows, scale).tiles, tiles.tiles)
