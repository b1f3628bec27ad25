"""Random weights of a given shape: the real size can be loaded, run and measured without the real file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from jupyter_gemma.errors import BadOption
from jupyter_gemma.model.config import (
    AttentionConfig,
    AudioConfig,
    ModelConfig,
    SpecialIds,
    VisionConfig,
    config_to_json,
)
from jupyter_gemma.model.ops import GROUP, TILE_ROWS, WeightKind
from jupyter_gemma.model.quant import Quantized, tiles_shape
from jupyter_gemma.model.weights import ALL_ROWS, TABLE, quantisable, weight_shapes

#: google/gemma-4-12B as published (its config.json).
GEMMA4_12B = ModelConfig(
    architecture="gemma4_unified",
    vocab_size=262144,
    hidden_size=3840,
    intermediate_size=15360,
    layers=(("sliding",) * 5 + ("full",)) * 8,
    attention={
        "sliding": AttentionConfig(16, 8, 256, 1024, 1e4, 128),
        "full": AttentionConfig(16, 1, 512, None, 1e6, 64, value_from_key=True),
    },
    norm_eps=1e-6,
    attention_scale=1.0,
    value_norm=True,
    layer_scalar=True,
    logit_softcap=30.0,
    max_positions=262144,
    ids=SpecialIds(
        bos=2,
        eos=(1, 106, 50),
        pad=0,
        image=258880,
        image_begin=255999,
        image_end=258882,
        audio=258881,
        audio_begin=256000,
        audio_end=258883,
    ),
    vision=VisionConfig(patch=48, positions=1120, embed_dim=3840),
    audio=AudioConfig(frame=640),
    bidirectional_images=True,
)


def random_config(name: str) -> ModelConfig:
    """The shape called ``name``: "12b", or "12b-L" with only L layers (a multiple of 6).

    Raises:
        BadOption: there is no such shape.
    """
    size, _, count = name.partition("-")
    if size != "12b" or (count and not count.isdecimal()):
        raise BadOption(f"There is no shape {name!r}.", 'Use "12b", or "12b-12" for its first 12 layers.')
    return replace(GEMMA4_12B, layers=GEMMA4_12B.layers[: int(count)]) if count else GEMMA4_12B


class RandomSource:
    """A checkpoint of random weights (a :class:`~jupyter_gemma.model.weights.WeightSource`).

    Decoder linears and the table are random bytes as int4 and int8 tiles, with scales that keep activations near
    one; everything else is float32. The same ``seed`` gives the same weights.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, table: WeightKind = "int8") -> None:
        self.config = config
        self._seed = seed
        self._table = table
        self._shapes = weight_shapes(config)

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """In the order of the model."""
        return self._shapes

    def kind(self, name: str) -> WeightKind:
        """int4 for linears, ``table`` for the table."""
        if not quantisable(name, self._shapes[name]):
            return "float"
        return self._table if name == TABLE else "int4"

    def lossy(self, name: str) -> bool:
        """As a file of few bits would be."""
        return self.kind(name) != "float"

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor | Quantized:
        """A new tensor, the same for the same name and rows; a weight read whole differs from one read in parts."""
        start, stop, _ = rows.indices(self._shapes[name][0])
        shape = (stop - start, *self._shapes[name][1:])
        generator = torch.Generator().manual_seed(self._number(f"{name} {start}"))
        kind = self.kind(name)
        if kind != "float":
            return Quantized(kind, _random_tiles(shape, kind, generator))
        if name.endswith("bias"):
            return torch.zeros(shape)
        if len(shape) == 1:
            return torch.ones(shape)
        values: Tensor = torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        return values

    def digest(self) -> str:
        """Of shape and seed."""
        return hashlib.sha256(f"random {self._seed} {self._table} {config_to_json(self.config)}".encode()).hexdigest()

    def _number(self, text: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{self._seed} {text}".encode()).digest()[:7], "little")


def _random_tiles(shape: tuple[int, ...], kind: WeightKind, generator: torch.Generator) -> Tensor:
    tiles = tiles_shape(shape, kind)
    # Whole 64-bit words are drawn several times faster than bytes.
    words = torch.randint(-(1 << 63), (1 << 63) - 1, (math.prod(tiles) // 8,), generator=generator)
    filled = words.view(torch.uint8).view(tiles)
    spread = 4.6 if kind == "int4" else 74.0  # standard deviation of uniform nibbles and bytes
    scale = torch.full((1, 1, TILE_ROWS), shape[-1] ** -0.5 / spread, dtype=torch.float16)
    filled[..., -2 * TILE_ROWS :] = scale.view(torch.uint8)
    return filled


def random_prompt(config: ModelConfig, count: int, seed: int = 0) -> Tensor:
    """Token ids int64 [count] of plain text (no media placeholders)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(GROUP * TILE_ROWS, min(config.vocab_size, 200_000), (count,), generator=generator)
