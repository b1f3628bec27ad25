"""Every path to a product agrees with plain torch, over odd shapes."""

from __future__ import annotations

import pytest
import torch

from jupyter_gemma.model import ops
from jupyter_gemma.model.quant import dequantize, quantize


def case(rows: int, columns: int, count: int, kind: str) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    quantized = quantize(torch.randn(rows, columns, generator=generator), kind)
    x = torch.randn(count, columns, generator=generator)
    return x, quantized.packed, quantized.scale, x.double() @ dequantize(quantized).double().t()


@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize(("rows", "columns"), [(16, 32), (48, 96), (80, 416), (2048, 4096)])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_plain_product_is_the_exact_one(rows: int, columns: int, count: int, kind: str) -> None:
    x, packed, scale, expected = case(rows, columns, count, kind)
    bound = 4 * columns**0.5 * 2**-24 * expected.abs().max()  # float32, random rounding over K terms
    assert (ops.plain_product(x, packed, scale) - expected).abs().max() <= bound


@pytest.mark.parametrize("count", [1, 2, 7, 33])
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (192, 416), (1024, 3840)])
def test_aten_int4_agrees_with_plain(rows: int, columns: int, count: int) -> None:
    x, packed, scale, expected = case(rows, columns, count, "int4")
    actual = ops.ATEN_INT4.product(x, *ops.ATEN_INT4.prepare(packed, scale))
    # x, the scales and the result are rounded to bfloat16 (2^-9 each, relative); K terms of random sign.
    spread = (x.abs().double() ** 2).sum(-1, keepdim=True).sqrt() * 2**-9 * 3
    bound = 6 * spread + 2**-8 * expected.abs()
    worst = ((actual - expected).abs() - bound).max()
    assert worst <= 0, f"beyond the bound by {worst:.3e}"


def test_plain_can_be_forced() -> None:
    assert ops.choose_int4("plain") is ops.PLAIN
    assert ops.choose_int4("auto", "cuda") is ops.PLAIN
    assert ops.choose_int4("auto").name in ("plain", "aten-int4")
