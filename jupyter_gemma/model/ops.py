"""The one door to fast code: products with quantised weights, chosen once when a model is loaded.

A :class:`Path` is a way to compute ``x @ W.T``: :data:`PLAIN` is ordinary torch and the twin that every other
path is tested against; :func:`aten_int4` is PyTorch's own 4-bit kernel for CPUs. Callers never branch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

GROUP = 32
OpsChoice = Literal["auto", "plain"]

# Rows of W expanded to float at a time, in values: 16 MB of float32 stays near the cache and bounds memory.
_PANEL_VALUES = 4 << 20


@dataclass(frozen=True)
class Path:
    """One way to multiply.

    ``prepare(packed, scale)`` brings the canonical tensors of ``quant.Quantized`` into the path's own layout;
    ``product(x [M, K], packed, scale) -> [M, N]`` multiplies, in x's dtype.
    """

    name: str
    prepare: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    product: Callable[[Tensor, Tensor, Tensor], Tensor]


def unpack(packed: Tensor, scale: Tensor) -> Tensor:
    """Canonical tensors [N, ...] -> float32 [N, K]. uint8 means int4 (see ``quant.Quantized``), int8 means int8."""
    rows, groups = scale.shape
    if packed.dtype == torch.uint8:
        pairs = packed.view(rows, groups, GROUP // 2)
        values = torch.cat((pairs & 15, pairs >> 4), dim=-1).to(torch.int8) - 8
    else:
        values = packed.view(rows, groups, GROUP)
    return (values * scale.float().unsqueeze(-1)).view(rows, groups * GROUP)


def plain_product(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """``x @ W.T`` in plain torch, expanding a panel of rows of W at a time."""
    rows = scale.shape[0]
    panel = max(1, _PANEL_VALUES // (scale.shape[1] * GROUP))
    out = x.new_empty(x.shape[0], rows)
    for start in range(0, rows, panel):
        weight = unpack(packed[start : start + panel], scale[start : start + panel]).to(x.dtype)
        torch.mm(x, weight.t(), out=out[:, start : start + panel])
    return out


def _as_is(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return packed, scale


PLAIN = Path("plain", _as_is, plain_product)


def _aten_prepare(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """To the layout of ``aten::_weight_int4pack_mm_for_cpu``: its packing depends on the processor."""
    rows, groups = scale.shape
    pairs = packed.view(rows, groups, GROUP // 2)
    nibbles = torch.cat((pairs & 15, pairs >> 4), dim=-1).view(rows, groups * GROUP).to(torch.int32)
    scale_and_zero = torch.stack((scale.t(), torch.zeros_like(scale.t())), dim=-1).to(torch.bfloat16)
    return torch._convert_weight_to_int4pack_for_cpu(nibbles, 1), scale_and_zero.contiguous()


def _aten_product(x: Tensor, packed: Tensor, scale_and_zero: Tensor) -> Tensor:
    """The kernel is only fast in bfloat16: activations and scales are rounded to 8 bits of mantissa."""
    product = torch._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), packed, GROUP, scale_and_zero)
    return product.to(x.dtype)


ATEN_INT4 = Path("aten-int4", _aten_prepare, _aten_product)


def choose_int4(choice: OpsChoice = "auto", device: str = "cpu") -> Path:
    """The fastest path for int4 products on this device, measured on one row of a small matrix.

    ``choice`` "plain" forces plain torch. Only the CPU has a second path so far.
    """
    if choice == "plain" or device != "cpu":
        return PLAIN
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (1024, 512), dtype=torch.uint8, generator=generator)
    scale = torch.rand(1024, 1024 // GROUP, generator=generator).half()
    x = torch.randn(1, 1024, generator=generator)
    return min((PLAIN, ATEN_INT4), key=lambda path: _seconds(path, x, packed, scale))


def _seconds(path: Path, x: Tensor, packed: Tensor, scale: Tensor) -> float:
    """The best of five runs; infinite if this build of torch lacks the operator."""
    try:
        prepared = path.prepare(packed, scale)
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            path.product(x, *prepared)
            runs.append(time.perf_counter() - start)
    except (RuntimeError, AttributeError, NotImplementedError):
        return float("inf")
    return min(runs)
