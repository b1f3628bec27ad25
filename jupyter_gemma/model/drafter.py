"""A small model that drafts the next tokens of a large one (``gemma4_unified_assistant``, multi-token prediction).

It has no keys and values of its own: its layers look at those of the large model's last sliding and last full layer.
A draft is a chain at one position, that of the last token, which the large model has not computed yet: each link takes
the embedding of a token and the hidden state that chose it, first the large model's, then what the link before made of
it. (transformers 5.23, ``SinglePositionMultiTokenCandidateGenerator``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model import ops
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.checkpoint import Quantization, open_source, plan_kinds
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.decoder import MLP, Block, Gemma, Prompt, RMSNorm, Rows, Span, rotary_table, rotate
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.quant import QuantLinear, linear
from jupyter_gemma.model.weights import TABLE, stored_weight


class SharedAttention(nn.Module):
    """Attention of one row of each sequence to what ``target`` has computed of it."""

    def __init__(self, config: ModelConfig, target: ModelConfig, index: int, kinds: Mapping[str, WeightKind]) -> None:
        super().__init__()
        self.shape = shape = config.layer(index)
        self.ops = ops.PLAIN_OPS
        self.how = ops.Attending(1, mask=None, ahead=None, window=None, scale=config.attention_scale)
        self.source = last_layer(target, config.layers[index])
        # transformers counts the window from the last key, not from the query, and includes both of its ends.
        self.reach = None if shape.window is None else shape.window + 1
        inner, name = shape.heads * shape.head_dim, f"layers.{index}.self_attn"
        self.q_proj = linear(inner, config.hidden_size, kinds.get(f"{name}.q_proj.weight", "float"))
        self.o_proj = linear(config.hidden_size, inner, kinds.get(f"{name}.o_proj.weight", "float"))
        self.q_norm = RMSNorm(shape.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rows: Rows, spans: Sequence[Span], index: int) -> Tensor:
        """x [N, hidden] -> [N, hidden], a row for each span."""
        query = self.q_proj(x).view(len(spans), self.shape.heads, self.shape.head_dim)
        query = rotate(self.q_norm(query), rows)
        caches = [span.cache.layers[self.source] for span in spans]
        mixed = [
            self.ops.attend(row.unsqueeze(0), *cache.last(self.reach), self.how)
            for row, cache in zip(query, caches, strict=True)
        ]
        projected: Tensor = self.o_proj(torch.cat(mixed).view(len(spans), -1))
        return projected


class DraftBlock(Block):
    """A decoder layer with the keys and values of another model."""

    def __init__(self, config: ModelConfig, target: ModelConfig, index: int, kinds: Mapping[str, WeightKind]) -> None:
        super().__init__(config, index, kinds)
        self.register_module("self_attn", SharedAttention(config, target, index, kinds))


class Drafter(nn.Module):
    """The whole drafter. Parameter names are those of the checkpoint, see ``weights``; ``kinds`` as in ``Gemma``.

    Its table only scores tokens: they are embedded by the target.
    """

    def __init__(self, config: ModelConfig, target: ModelConfig, kinds: Mapping[str, WeightKind] | None = None) -> None:
        super().__init__()
        self.config = config
        kinds = kinds or {}
        backbone = target.hidden_size
        self.pre_projection = linear(config.hidden_size, 2 * backbone)
        self.layers = nn.ModuleList(DraftBlock(config, target, index, kinds) for index in range(len(config.layers)))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.embed_tokens = linear(config.vocab_size, config.hidden_size, kinds.get(TABLE, "float"))
        self.post_projection = linear(backbone, config.hidden_size)

    def use(self, chosen: ops.Ops) -> None:
        """Compute with ``chosen`` from now on."""
        for module in self.modules():
            if isinstance(module, QuantLinear):
                module.use(chosen.paths[module.kind])
            elif isinstance(module, (RMSNorm, SharedAttention, MLP)):
                module.ops = chosen

    def forward(self, x: Tensor, caches: Sequence[SequenceCache]) -> tuple[Tensor, Tensor]:
        """One link for each sequence.

        Args:
            x: [N, 2 * backbone], the scaled embedding of the last token and the hidden state that chose it.
            caches: the target's, of everything before the last token; left as they are.

        Returns:
            The next hidden states [N, backbone], and the scores of the next tokens float32 [N, vocab].
        """
        spans = [Span(1, cache) for cache in caches]
        positions = torch.tensor([cache.length for cache in caches], device=x.device)
        plans = {
            kind: Rows(*rotary_table(shape, positions, x.dtype), ()) for kind, shape in self.config.attention.items()
        }
        rows: Tensor = self.pre_projection(x)
        for kind, block in zip(self.config.layers, self.layers, strict=True):
            rows = block(rows, plans[kind], spans)
        rows = self.norm(rows)
        return self.post_projection(rows), self.embed_tokens(rows).float()

    def draft(self, target: Gemma, last: int, hidden: Tensor, cache: SequenceCache, count: int) -> list[int]:
        """``count`` tokens that may follow ``last``.

        Args:
            last: the token that comes after what ``cache`` holds.
            hidden: [backbone], the normed hidden state whose scores chose it.
        """
        ids: list[int] = []
        while len(ids) < count:
            token = torch.tensor([last], device=hidden.device)
            row = torch.cat((target.embed(Prompt(token))[0], hidden))
            states, scores = self(row.unsqueeze(0), [cache])
            hidden, last = states[0], int(scores[0].argmax())
            ids.append(last)
        return ids


def last_layer(config: ModelConfig, kind: str) -> int:
    """The index of the last layer of a kind."""
    return len(config.layers) - 1 - config.layers[::-1].index(kind)


def load_drafter(path: Path, target: Gemma, quantization: Quantization = "auto") -> Drafter:
    """Load the drafter of a model.

    Args:
        path: a folder of safetensors files with config.json.
        target: the model, loaded; the drafter goes to its device.
        quantization: see ``checkpoint.plan_kinds``.

    Raises:
        BadCheckpoint: no drafter, not this model's, or see ``checkpoint.open_source``.
    """
    source = open_source(path)
    _check(source.config, target.config, path)
    kinds = plan_kinds(source, quantization)
    weight = target.norm.weight
    with init_empty_weights():
        drafter = Drafter(source.config, target.config, kinds)
    for name, kind in kinds.items():
        for entry, value in stored_weight(source, name, kind, weight.dtype).items():
            set_module_tensor_to_device(drafter, entry, weight.device, value=value, dtype=value.dtype)
    return drafter.requires_grad_(False).eval()


def _check(config: ModelConfig, target: ModelConfig, path: Path) -> None:
    """That the drafter can look at the target's keys and values, and speaks its tokens."""
    if config.backbone_size is None:
        raise BadCheckpoint(f"{path} is a model, not a drafter.", "Name the drafter of the model, or none.")
    same = (config.backbone_size, config.vocab_size) == (target.hidden_size, target.vocab_size)
    for kind in set(config.layers):
        mine, its = config.attention[kind], target.attention[kind]
        same = same and kind in target.layers and (mine.kv_heads, mine.head_dim) == (its.kv_heads, its.head_dim)
    if not same:
        raise BadCheckpoint(f"{path} is the drafter of another model.", "Fetch the one that belongs to this model.")
