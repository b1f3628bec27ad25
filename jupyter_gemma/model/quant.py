"""Weights in four and eight bits, and the modules that hold them.

Both kinds are symmetric with one fp16 scale for each group of 32 inputs of an output row, as in GGUF's Q4_0
and Q8_0 (ggml ``block_q4_0``, ``block_q8_0``), so those files are repacked without loss. A matrix is one tensor
of tiles, in the order in which the compute kernels read it; how a product is computed is chosen in ``ops``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jupyter_gemma.model import ops
from jupyter_gemma.model.ops import GROUP, TILE_ROWS, WeightKind

#: Bytes of a tile: 16 rows of 32 inputs and their 16 scales.
TILE_BYTES = {"int4": 288, "int8": 544}


@dataclass(frozen=True)
class Quantized:
    """A matrix [N, K] in few bits: ``tiles`` uint8 [N/16, K/32, 288 (int4) or 544 (int8)].

    A tile holds 16 rows x 32 inputs. int8: 8 vectors of 64 bytes, vector j with inputs 4j..4j+3 of every row.
    int4: 4 vectors, the low nibbles of vector j with inputs 4j..4j+3, the high ones with 16+4j..16+4j+3, each
    + 8. Then the 16 fp16 scales. (``kernels/compute/src/kernels.h`` reads the same.)
    """

    kind: WeightKind
    tiles: Tensor


def fits(shape: Sequence[int]) -> bool:
    """Whether a matrix of this shape can be cut into tiles."""
    return len(shape) == 2 and shape[0] % TILE_ROWS == 0 and shape[1] % GROUP == 0


def tiles_shape(shape: Sequence[int], kind: WeightKind) -> tuple[int, int, int]:
    """The shape of ``Quantized.tiles`` for a matrix [N, K]."""
    return shape[0] // TILE_ROWS, shape[1] // GROUP, TILE_BYTES[kind]


def quantize(weight: Tensor, kind: WeightKind) -> Quantized:
    """Round a float matrix [N, K] to ``kind``; N must be a multiple of 16 and K of 32.

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
        return from_bytes(whole.to(torch.int8).view(torch.uint8), scale.squeeze(-1))
    low, high = whole.to(torch.uint8).chunk(2, dim=-1)
    return from_nibbles(low | (high << 4), scale.squeeze(-1))


def from_nibbles(packed: Tensor, scale: Tensor) -> Quantized:
    """Rows as ggml's ``block_q4_0`` has them: uint8 [N, K/32, 16], byte j with inputs j (low) and j+16 (high).

    ``scale``: fp16 [N, K/32].
    """
    return Quantized("int4", _tiles(packed, scale))


def from_bytes(packed: Tensor, scale: Tensor) -> Quantized:
    """Rows as ggml's ``block_q8_0`` has them: the bytes of int8 as uint8 [N, K/32, 32]; ``scale`` fp16 [N, K/32]."""
    return Quantized("int8", _tiles(packed, scale))


def _tiles(packed: Tensor, scale: Tensor) -> Tensor:
    rows, groups, width = packed.shape
    values = packed.reshape(rows // TILE_ROWS, TILE_ROWS, groups, width // 4, 4).permute(0, 2, 3, 1, 4)
    scales = scale.reshape(rows // TILE_ROWS, TILE_ROWS, groups).permute(0, 2, 1).contiguous()
    return torch.cat((values.reshape(*values.shape[:2], -1), scales.view(torch.uint8)), dim=-1)


def to_rows(weight: Quantized) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`from_nibbles` and :func:`from_bytes`: uint8 [N, K/32, 16 or 32], fp16 [N, K/32]."""
    count, groups, _ = weight.tiles.shape
    values = weight.tiles[..., : -2 * TILE_ROWS].reshape(count, groups, -1, TILE_ROWS, 4).permute(0, 3, 1, 2, 4)
    scales = weight.tiles[..., -2 * TILE_ROWS :].view(torch.float16).permute(0, 2, 1)
    rows = count * TILE_ROWS
    return values.reshape(rows, groups, -1), scales.reshape(rows, groups)


def dequantize(weight: Quantized) -> Tensor:
    """The float32 matrix [N, K] that ``weight`` stands for."""
    return ops.unpack(weight.tiles)


class QuantWeight(nn.Module):
    """The tiles of a quantised matrix [rows, columns], empty until a checkpoint fills them."""

    def __init__(self, rows: int, columns: int, kind: WeightKind) -> None:
        super().__init__()
        self.rows, self.columns, self.kind = rows, columns, kind
        empty = torch.empty(tiles_shape((rows, columns), kind), dtype=torch.uint8)
        self.tiles = nn.Parameter(empty, requires_grad=False)

    def extra_repr(self) -> str:
        """Shape and kind, for ``print(model)``."""
        return f"{self.rows}, {self.columns}, {self.kind}"


class QuantLinear(QuantWeight):
    """``y = x @ W.T`` with W in ``kind``; x [..., K] float -> y [..., N] of the same dtype."""

    def __init__(self, out_features: int, in_features: int, kind: WeightKind) -> None:
        super().__init__(out_features, in_features, kind)
        self.in_features, self.out_features = in_features, out_features
        self.path: ops.Path = ops.PLAIN
        self.extra: Tensor | None = None

    def use(self, path: ops.Path) -> None:
        """Bring the tiles into the layout of ``path`` and multiply by it from now on."""
        if path.prepare is not None:
            prepared, self.extra = path.prepare(self.tiles.data)
            self.tiles = nn.Parameter(prepared, requires_grad=False)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        """Multiply; the path (kernel, ATen, plain torch) was chosen when the model was loaded."""
        rows = x.reshape(-1, self.columns)
        return self.path.product(rows, self.tiles, self.extra).view(*x.shape[:-1], self.rows)


class QuantEmbedding(QuantWeight):
    """Rows of a quantised table: ids [T] -> float32 [T, K]."""

    def forward(self, ids: Tensor) -> Tensor:
        """Look up and expand only the rows asked for."""
        return ops.unpack_rows(self.tiles, ids)


class Linear(nn.Module):
    """``y = x @ W.T`` with a float weight. (nn.Linear would spend seconds on random initial values.)"""

    def __init__(self, out_features: int, in_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
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
