"""Weights in four and eight bits, and the modules that hold them.

Both kinds are symmetric with one fp16 scale for each group of 32 inputs of an output row, as in GGUF's Q4_0
and Q8_0 (ggml ``block_q4_0``, ``block_q8_0``), so those files are repacked without loss. How a product is
computed from them is chosen in :mod:`jupyter_gemma.model.ops`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from jupyter_gemma.model import ops

WeightKind = Literal["float", "int4", "int8"]
GROUP = ops.GROUP


@dataclass(frozen=True)
class Quantized:
    """A matrix [N, K] in few bits.

    int4: ``packed`` uint8 [N, K/2]; in each group of 32 inputs byte j holds input j in its low and input
    j+16 in its high nibble, value = (nibble - 8) * scale. int8: ``packed`` int8 [N, K], value = packed * scale.
    ``scale``: fp16 [N, K/32].
    """

    kind: WeightKind
    packed: Tensor
    scale: Tensor


def quantize(weight: Tensor, kind: WeightKind) -> Quantized:
    """Round a float matrix [N, K] to ``kind``; K must be a multiple of 32.

    The rule of ggml's reference quantisers: int4 maps the value of largest magnitude of a group, with its
    sign, to -8; int8 maps the largest magnitude to 127.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // GROUP, GROUP)
    if kind == "int4":
        peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
        scale, bottom, top, offset = (peak / -8).half(), 0, 15, 8
    elif kind == "int8":
        scale, bottom, top, offset = (groups.abs().amax(-1, keepdim=True) / 127).half(), -127, 127, 0
    else:
        raise ValueError(f"cannot quantise to {kind!r}")
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale.float())
    whole = (groups * inverse).round_().add_(offset).clamp_(bottom, top)
    if kind == "int8":
        return Quantized(kind, whole.to(torch.int8).view(rows, columns), scale.squeeze(-1))
    return Quantized(kind, pack_nibbles(whole.to(torch.uint8)).view(rows, columns // 2), scale.squeeze(-1))


def pack_nibbles(values: Tensor) -> Tensor:
    """uint8 0..15 [..., 32] -> [..., 16]: input j low, input j+16 high (ggml's ``block_q4_0`` order)."""
    low, high = values[..., : GROUP // 2], values[..., GROUP // 2 :]
    return low | (high << 4)


def dequantize(weight: Quantized) -> Tensor:
    """The float32 matrix [N, K] that ``weight`` stands for."""
    return ops.unpack(weight.packed, weight.scale)


def _buffer(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class QuantWeight(nn.Module):
    """The two tensors of a quantised matrix [rows, columns], empty until a checkpoint fills them."""

    def __init__(self, rows: int, columns: int, kind: WeightKind) -> None:
        super().__init__()
        self.rows, self.columns, self.kind = rows, columns, kind
        width, dtype = (columns // 2, torch.uint8) if kind == "int4" else (columns, torch.int8)
        self.packed = _buffer((rows, width), dtype)
        self.scale = _buffer((rows, columns // GROUP), torch.float16)

    def extra_repr(self) -> str:
        """Shape and kind, for ``print(model)``."""
        return f"{self.rows}, {self.columns}, {self.kind}"


class QuantLinear(QuantWeight):
    """``y = x @ W.T`` with W in ``kind``; x [..., K] float -> y [..., N] of the same dtype."""

    def __init__(self, out_features: int, in_features: int, kind: WeightKind) -> None:
        super().__init__(out_features, in_features, kind)
        self.path: ops.Path = ops.PLAIN

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; the path (plain torch, ATen, ...) was chosen when the model was loaded."""
        rows = x.reshape(-1, self.columns)
        return self.path.product(rows, self.packed, self.scale).view(*x.shape[:-1], self.rows)


class QuantEmbedding(QuantWeight):
    """Rows of a quantised table: ids [T] -> float32 [T, K]."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up and expand only the rows asked for."""
        return ops.unpack(self.packed[ids], self.scale[ids])


class Linear(nn.Module):
    """``y = x @ W.T`` with a float weight. (nn.Linear would spend seconds on random initial values.)"""

    def __init__(self, out_features: int, in_features: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        return nn.functional.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows of a float table: ids [T] -> [T, K]."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))

    def forward(self, ids: Tensor) -> Tensor:
        """Look up."""
        return nn.functional.embedding(ids, self.weight)


def linear(out_features: int, in_features: int, kind: WeightKind = "float") -> Linear | QuantLinear:
    """The module for a weight stored as ``kind``."""
    return Linear(out_features, in_features) if kind == "float" else QuantLinear(out_features, in_features, kind)


def embedding(rows: int, columns: int, kind: WeightKind = "float") -> Embedding | QuantEmbedding:
    """The table for a weight stored as ``kind``."""
    return Embedding(rows, columns) if kind == "float" else QuantEmbedding(rows, columns, kind)
