"""The decoder, top to bottom as in the papers (Gemma 3 and Gemma 4 technical reports).

Rows, not batches: the tokens of all sequences of a step lie one after the other in a matrix [N, hidden], so
every weight is read once for all of them, sequences of unequal length need no padding, and only attention
looks at each sequence (a :class:`Span`) by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from jupyter_gemma.model import ops
from jupyter_gemma.model.adapter import Routing
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.config import AttentionConfig, ModelConfig
from jupyter_gemma.model.embedders import VisionEmbedder, audio_projection, vision_projection
from jupyter_gemma.model.masks import attention_mask, looks_ahead
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.quant import QuantLinear, embedding, linear


@dataclass(frozen=True)
class SoftTokens:
    """A picture (``patches`` [P, values] and ``positions`` [P, 2]) or a clip (``frames`` [T, samples]).

    It replaces the placeholder ids from ``offset`` on. See ``embedders`` for the units. ``adapter``: see ``adapter``.
    """

    offset: int
    patches: Tensor | None = None
    positions: Tensor | None = None
    frames: Tensor | None = None
    adapter: str = ""

    @property
    def count(self) -> int:
        """Soft tokens it fills."""
        rows = self.frames if self.patches is None else self.patches
        return 0 if rows is None else rows.shape[0]


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [T], placeholders already expanded, and the media that stand at the placeholders."""

    ids: Tensor
    soft: tuple[SoftTokens, ...] = ()

    def blocks(self) -> Tensor | None:
        """int64 [T]: which picture a position belongs to, -1 for none; None without pictures."""
        pictures = [soft for soft in self.soft if soft.patches is not None]
        if not pictures:
            return None
        blocks = torch.full_like(self.ids, -1)
        for number, soft in enumerate(pictures):
            blocks[soft.offset : soft.offset + soft.count] = number
        return blocks


@dataclass(frozen=True)
class Span:
    """The next ``count`` rows belong to the sequence of ``cache``; ``blocks`` [count] as in ``masks``.

    A picture must not be cut: all its rows go into one span. ``adapter`` names what is added to the weights for them.
    """

    count: int
    cache: SequenceCache
    blocks: Tensor | None = None
    adapter: str = ""


@dataclass(frozen=True)
class Rows:
    """What one kind of attention layer needs to know about the rows of a step; computed once for all its layers.

    ``cos``, ``sin``: [N, 1, head_dim / 2]. ``attending``: one for each span.
    """

    cos: Tensor
    sin: Tensor
    attending: tuple[ops.Attending, ...]


class RMSNorm(nn.Module):
    """Root mean square norm times the raw weight (no +1: Gemma 3 checkpoints are converted on loading)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.ops = ops.PLAIN_OPS

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., width]; ``residual`` of the same shape is added."""
        return self.ops.rms_norm(x, self.weight, self.eps, residual)


def rotary_table(config: AttentionConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, head_dim / 2] for positions [N] (RoFormer; Gemma 4's "proportional" variant).

    Pairs beyond ``rotary_pairs`` do not turn: their frequency is 0.
    """
    pair = torch.arange(config.head_dim // 2, dtype=torch.float32)
    frequency = config.rope_theta ** (-2 * pair / config.head_dim) / config.rope_factor
    frequency[config.rotary_pairs :] = 0.0
    angle = positions.float().unsqueeze(-1) * frequency.to(positions.device)
    return angle.cos().unsqueeze(1).to(dtype), angle.sin().unsqueeze(1).to(dtype)


def rotate(x: Tensor, rows: Rows) -> Tensor:
    """Turn the pairs (i, i + head_dim/2) of x [N, heads, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return torch.cat((left * rows.cos - right * rows.sin, right * rows.cos + left * rows.sin), dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys, over each sequence's own cache."""

    def __init__(self, config: ModelConfig, index: int, kinds: Mapping[str, WeightKind]) -> None:
        super().__init__()
        self.shape = shape = config.layer(index)
        self.eps, self.value_norm = config.norm_eps, config.value_norm
        self.ops = ops.PLAIN_OPS

        def projection(name: str, out_features: int, in_features: int) -> nn.Module:
            return linear(out_features, in_features, kinds.get(f"layers.{index}.self_attn.{name}.weight", "float"))

        inner, outer = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = projection("q_proj", inner, config.hidden_size)
        self.k_proj = projection("k_proj", outer, config.hidden_size)
        if not shape.value_from_key:
            self.v_proj = projection("v_proj", outer, config.hidden_size)
        self.o_proj = projection("o_proj", config.hidden_size, inner)
        self.q_norm = RMSNorm(shape.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rows: Rows, spans: Sequence[Span], index: int) -> Tensor:
        """x [N, hidden] -> [N, hidden]; appends to layer ``index`` of every span's cache."""
        count, shape = x.shape[0], self.shape
        query = self.q_proj(x).view(count, shape.heads, shape.head_dim)
        key = self.k_proj(x).view(count, shape.kv_heads, shape.head_dim)
        # Where V shares K's projection it is the raw output: before k_norm and without rotation.
        value = key if shape.value_from_key else self.v_proj(x).view(count, shape.kv_heads, shape.head_dim)
        query, key = rotate(self.q_norm(query), rows), rotate(self.k_norm(key), rows)
        if self.value_norm:
            value = self.ops.rms_norm(value, None, self.eps, None)
        caches = [span.cache.layers[index] for span in spans]
        mixed = self.ops.append_and_attend(query, key, value, caches, rows.attending)
        projected: Tensor = self.o_proj(mixed.view(count, -1))
        return projected


class MLP(nn.Module):
    """Gated GELU (tanh form): down(gelu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, index: int, kinds: Mapping[str, WeightKind]) -> None:
        super().__init__()

        def projection(name: str, out_features: int, in_features: int) -> nn.Module:
            return linear(out_features, in_features, kinds.get(f"layers.{index}.mlp.{name}.weight", "float"))

        self.gate_proj = projection("gate_proj", config.intermediate_size, config.hidden_size)
        self.up_proj = projection("up_proj", config.intermediate_size, config.hidden_size)
        self.down_proj = projection("down_proj", config.hidden_size, config.intermediate_size)
        self.ops = ops.PLAIN_OPS

    def forward(self, x: Tensor) -> Tensor:
        """x [N, hidden] -> [N, hidden]."""
        out: Tensor = self.down_proj(self.ops.gated_gelu(self.gate_proj(x), self.up_proj(x)))
        return out


class Block(nn.Module):
    """One layer: attention and MLP, each between two norms, then the layer's scalar (Gemma 4)."""

    def __init__(self, config: ModelConfig, index: int, kinds: Mapping[str, WeightKind]) -> None:
        super().__init__()
        self.index = index
        self.self_attn = Attention(config, index, kinds)
        self.mlp = MLP(config, index, kinds)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.layer_scalar = nn.Parameter(torch.empty(1)) if config.layer_scalar else None

    def forward(self, x: Tensor, rows: Rows, spans: Sequence[Span]) -> Tensor:
        """x [N, hidden] -> [N, hidden]."""
        x = self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rows, spans, self.index), residual=x)
        x = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)), residual=x)
        return x if self.layer_scalar is None else x * self.layer_scalar


class Gemma(nn.Module):
    """The whole model. ``kinds`` says which weights are stored quantised (by name; missing ones are float).

    Parameters are empty until a checkpoint fills them (``checkpoint.load``). Parameter names are those of the
    12B checkpoint without their prefixes, see ``checkpoint``.
    """

    def __init__(self, config: ModelConfig, kinds: Mapping[str, WeightKind] | None = None) -> None:
        super().__init__()
        self.config = config
        self.ops = ops.PLAIN_OPS
        self.routing = Routing()
        kinds = kinds or {}
        table_kind = kinds.get("embed_tokens.weight", "float")
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size, table_kind)
        self.layers = nn.ModuleList(Block(config, index, kinds) for index in range(len(config.layers)))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = linear(config.vocab_size, config.hidden_size, table_kind)
        if config.vision is not None:
            self.vision_embedder = VisionEmbedder(config.vision)
            self.embed_vision = vision_projection(config.vision, config.hidden_size)
        if config.audio is not None:
            self.embed_audio = audio_projection(config.audio, config.hidden_size)
        self.tie()

    def tie(self) -> None:
        """The head multiplies with the embedding table: both modules hold the same parameters."""
        for name, parameter in self.embed_tokens.named_parameters():
            setattr(self.head, name, parameter)

    def use(self, chosen: ops.Ops) -> None:
        """Compute with ``chosen`` from now on.

        A path with a layout of its own is not for weights that are read from disk, nor for the head, whose
        tiles are the embedding table's too; nor any path for a matrix of too few inputs. Those stay plain.
        """
        for module in self.modules():
            if isinstance(module, QuantLinear):
                path = chosen.paths[module.kind]
                shared = module is self.head or module.tiles.is_meta
                unfit = (shared and path.prepare is not None) or module.columns % path.multiple
                module.use(ops.PLAIN if unfit else path)
            elif isinstance(module, (RMSNorm, Attention, MLP, Gemma)):
                module.ops = chosen

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """In which keys and values are best stored: rounded only where the weights are rounded more."""
        coarse = any(isinstance(module, QuantLinear) and module.kind == "int4" for module in self.modules())
        return self.ops.cache_dtype if coarse else None

    def embed(self, prompt: Prompt) -> Tensor:
        """Ids and media -> [T, hidden]. Text is scaled by sqrt(hidden); soft tokens are not."""
        rows: Tensor = self.embed_tokens(prompt.ids) * math.sqrt(self.config.hidden_size)
        for soft in prompt.soft:
            rows[soft.offset : soft.offset + soft.count] = self._soft_rows(soft).to(rows.dtype)
        return rows

    def _soft_rows(self, soft: SoftTokens) -> Tensor:
        self.routing.direct([(soft.count, soft.adapter)])
        if soft.patches is not None:
            return cast(Tensor, self.embed_vision(self.vision_embedder(soft.patches, soft.positions)))
        return cast(Tensor, self.embed_audio(soft.frames))

    def forward(self, rows: Tensor, spans: Sequence[Span]) -> Tensor:
        """Run all layers over the rows [N, hidden] of all spans; returns the normed hidden states [N, hidden].

        Every span's cache grows by its count.
        """
        self.routing.direct((span.count, span.adapter) for span in spans)
        plans = {kind: self._plan(shape, spans, rows) for kind, shape in self.config.attention.items()}
        for index, block in enumerate(self.layers):
            rows = block(rows, plans[self.config.layers[index]], spans)
        for span in spans:
            span.cache.length += span.count
        normed: Tensor = self.norm(rows)
        return normed

    def _plan(self, shape: AttentionConfig, spans: Sequence[Span], like: Tensor) -> Rows:
        positions = torch.cat([torch.arange(s.cache.length, s.cache.length + s.count) for s in spans])
        cos, sin = rotary_table(shape, positions.to(like.device), like.dtype)
        scale = self.config.attention_scale
        attending = []
        for span in spans:
            start = span.cache.length
            first = 0 if shape.window is None else max(0, start - shape.window + 1)
            # Full layers are causal inside pictures too.
            blocks = span.blocks if self.config.bidirectional_images and shape.window is not None else None
            mask = attention_mask(start, span.count, first, shape.window, blocks)
            mask = None if mask is None else mask.to(like.device)
            ahead = None if blocks is None else looks_ahead(blocks)
            attending.append(ops.Attending(span.count, mask, ahead, shape.window, scale))
        return Rows(cos, sin, tuple(attending))

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [M, hidden] -> float32 logits [M, vocab], soft-capped where the model says so."""
        scores: Tensor = self.head(hidden).float()
        cap = self.config.logit_softcap
        return scores if cap is None else self.ops.softcap(scores, cap)

    def logits_of(self, prompt: Prompt) -> Tensor:
        """Logits [T, vocab] of every position in one plain pass: the reference for every other way."""
        span = Span(len(prompt.ids), SequenceCache.for_model(self.config), prompt.blocks())
        return self.logits(self(self.embed(prompt), [span]))
