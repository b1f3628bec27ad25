"""Pictures and sound become soft tokens without an encoder: one projection each (Gemma 4 Unified)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jupyter_gemma.model.config import AudioConfig, VisionConfig
from jupyter_gemma.model.quant import Linear


class LayerNorm(nn.Module):
    """LayerNorm with scale and shift, eps 1e-5, empty until a checkpoint fills it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width]."""
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)


class Projection(nn.Module):
    """RMSNorm without weight, then a linear map into the decoder's space: [T, width] -> [T, hidden]."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.embedding_projection = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """One soft token a row."""
        normed = F.rms_norm(x, x.shape[-1:], eps=self.eps)
        projected: Tensor = self.embedding_projection(normed)
        return projected


class VisionEmbedder(nn.Module):
    """Flattened RGB patches and their places -> [P, embed_dim], still to be projected.

    patches [P, patch*patch*3] in [0, 1], rows of (height, width, channel); positions int64 [P, 2] as (x, y).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_ln1 = LayerNorm(config.patch_values)
        self.patch_dense = Linear(config.embed_dim, config.patch_values, bias=True)
        self.patch_ln2 = LayerNorm(config.embed_dim)
        self.pos_embedding = nn.Parameter(torch.empty(config.positions, 2, config.embed_dim))
        self.pos_norm = LayerNorm(config.embed_dim)

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Patch projection plus a learned vector for the column and one for the row."""
        x = self.patch_ln2(self.patch_dense(self.patch_ln1(patches)))
        place = self.pos_embedding[positions[:, 0], 0] + self.pos_embedding[positions[:, 1], 1]
        placed: Tensor = self.pos_norm(x + place)
        return placed


def vision_projection(config: VisionConfig, hidden: int) -> Projection:
    """From the vision embedder into the decoder."""
    return Projection(config.embed_dim, hidden, config.norm_eps)


def audio_projection(config: AudioConfig, hidden: int) -> Projection:
    """Raw frames [T, frame] in [-1, 1], straight into the decoder."""
    return Projection(config.frame, hidden, config.norm_eps)
