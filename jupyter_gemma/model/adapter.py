"""Adapters: low-rank additions to linear maps (LoRA, arXiv 2106.09685), in the file format of the library peft.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. Several adapters can be attached to one
model; in a pass each row is computed with the one that its span names, so requests with different adapters share
the pass, and the weights are read once for all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.huggingface import our_name, their_name
from jupyter_gemma.model.quant import Quantized, dequantize
from jupyter_gemma.model.weights import ALL_ROWS, WeightSource, weight_shapes

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: Last names of the linear maps that can be adapted: those of a layer, and the projections of pictures and sound.
TARGETS = (
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("patch_dense", "embedding_projection"),
)

_PREFIX = "base_model.model."
# transformers 5.23 keeps these modules elsewhere than their weights stand in a checkpoint; peft names modules.
_MODULES = {
    "vision_embedder.patch_dense": "embed_vision.patch_dense",
    "embed_vision.embedding_projection": "embed_vision.multimodal_embedder.embedding_projection",
}
_HALVES = (".lora_A.weight", ".lora_B.weight")
# Features of peft that change what the weights mean, and their harmless values.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "alpha_pattern": (None, {}),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
}
_TRAIN_AGAIN = "Use an adapter that was trained for this model: jupyter gemma finetune."


@dataclass(frozen=True)
class LowRank:
    """``x @ down.T @ up.T`` is added: ``down`` [r, K], ``up`` [N, r], the adapter's scale already in it."""

    down: Tensor
    up: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, K] -> [n, N]."""
        return F.linear(F.linear(x, self.down), self.up)


#: What an adapter adds, by the name of the linear map ("layers.0.self_attn.q_proj").
Adapter = Mapping[str, LowRank]


@dataclass
class Routing:
    """Which rows of the pass that runs belong to which adapter."""

    parts: tuple[tuple[slice, str], ...] = ()

    def direct(self, counts: Iterable[tuple[int, str]]) -> None:
        """The rows of the next pass, as (how many, adapter or "") one after the other."""
        parts, start = [], 0
        for count, name in counts:
            if name:
                parts.append((slice(start, start + count), name))
            start += count
        self.parts = tuple(parts)


class Adapted(nn.Module):
    """A linear map and what adapters add to it."""

    def __init__(self, base: nn.Module, routing: Routing) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.additions: dict[str, LowRank] = {}

    def forward(self, x: Tensor) -> Tensor:
        """x [N, in] -> [N, out]."""
        y: Tensor = self.base(x)
        for part, name in self.routing.parts:
            if name in self.additions:
                y[part] += self.additions[name](x[part])
        return y


def attach(model: nn.Module, routing: Routing, name: str, adapter: Adapter, like: Tensor) -> None:
    """Make ``adapter`` known to ``model`` as ``name``, on the device and in the dtype of ``like``.

    The model may be computing meanwhile: nothing changes for rows that do not name it.
    """
    for place, added in adapter.items():
        parent, _, leaf = place.rpartition(".")
        owner = model.get_submodule(parent)
        module = getattr(owner, leaf)
        if not isinstance(module, Adapted):
            module = Adapted(module, routing)
            setattr(owner, leaf, module)
        module.additions[name] = LowRank(added.down.to(like), added.up.to(like))


def adaptable(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape [N, K] of every linear map that can be adapted."""
    shapes = {name.removesuffix(".weight"): shape for name, shape in weight_shapes(config).items()}
    return {name: shape for name, shape in shapes.items() if name.rpartition(".")[2] in TARGETS and len(shape) == 2}


def adapter_key(name: str, half: Literal["A", "B"], architecture: str) -> str:
    """What peft calls a half of the addition to our linear map ``name``, on the model as transformers builds it."""
    return f"{_PREFIX}{their_name(_MODULES.get(name, name), architecture)}.lora_{half}.weight"


def read_adapter(folder: Path, config: ModelConfig) -> Adapter:
    """Read an adapter for a model of this configuration.

    Raises:
        BadCheckpoint: no adapter there, one of another kind or for another model; what does not fit is named.
    """
    settings = _read_config(folder / ADAPTER_CONFIG)
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{folder / ADAPTER_WEIGHTS} cannot be read: {error}.", _TRAIN_AGAIN) from error
    ours = {theirs: name for name, theirs in _MODULES.items()}
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _HALVES if key.endswith(suffix)), "")
        name = our_name(key.removeprefix(_PREFIX).removesuffix(suffix))
        name = ours.get(name, name)
        if not suffix or name not in adaptable(config):
            raise BadCheckpoint(f"{folder} has a tensor {key} that this model has no place for.", _TRAIN_AGAIN)
        halves.setdefault(name, {})[suffix] = tensor.float()
    return {name: _low_rank(folder, name, found, settings, config) for name, found in halves.items()}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {error}.", "Give the folder of an adapter.") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        raise BadCheckpoint(f"{path} does not describe a LoRA adapter.", _TRAIN_AGAIN)
    for key, harmless in _PLAIN.items():
        if settings.get(key) not in harmless:
            raise BadCheckpoint(f"{path} asks for {key}={settings[key]!r}, which is not supported.", _TRAIN_AGAIN)
    return settings


def _low_rank(
    folder: Path, name: str, found: Mapping[str, Tensor], settings: Mapping[str, Any], config: ModelConfig
) -> LowRank:
    rows, columns = adaptable(config)[name]
    down, up = (found.get(suffix, torch.empty(0, 0)) for suffix in _HALVES)
    rank = down.shape[0]
    if rank == 0 or down.shape != (rank, columns) or up.shape != (rows, rank):
        raise BadCheckpoint(
            f"{folder}: the adapter of {name} has shapes {list(down.shape)} and {list(up.shape)}; "
            f"this model's map has [{rows}, {columns}].",
            _TRAIN_AGAIN,
        )
    scale = settings.get("lora_alpha", rank) / (rank**0.5 if settings.get("use_rslora") else rank)
    return LowRank(down, up * scale)


@dataclass
class MergedSource:
    """A checkpoint with an adapter added into its weights (a ``WeightSource``); merged weights are float."""

    source: WeightSource
    adapter: Adapter
    config: ModelConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = self.source.config

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the checkpoint."""
        return self.source.names()

    def kind(self, name: str) -> Any:
        """Float where something was added."""
        return "float" if self._added(name) else self.source.kind(name)

    def lossy(self, name: str) -> bool:
        """As the checkpoint says."""
        return self.source.lossy(name)

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor | Quantized:
        """The weight, float32 where something was added."""
        weight = self.source.read(name, rows)
        if (added := self._added(name)) is None:
            return weight
        plain = dequantize(weight) if isinstance(weight, Quantized) else weight.float()
        return plain + added.up[rows] @ added.down

    def digest(self) -> str:
        """Of the checkpoint and the adapter's weights."""
        found = hashlib.sha256(self.source.digest().encode())
        for name in sorted(self.adapter):
            for half in (self.adapter[name].down, self.adapter[name].up):
                found.update(half.numpy().tobytes())
        return found.hexdigest()

    def _added(self, name: str) -> LowRank | None:
        return self.adapter.get(name.removesuffix(".weight"))
