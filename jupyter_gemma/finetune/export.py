"""Models out of what was learnt: as a folder of safetensors as transformers writes it, or packed as we read it fastest.

Weights are merged and written one after the other, so a large model needs the memory of one shard.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from jupyter_gemma.errors import BadOption
from jupyter_gemma.finetune.lora import write_whole
from jupyter_gemma.model.adapter import MergedSource, read_adapter
from jupyter_gemma.model.checkpoint import open_source, plan_kinds
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.huggingface import INDEX_NAME, WEIGHTS_NAME, their_name
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.packed import PACKED_NAME, write_packed
from jupyter_gemma.model.quant import Quantized, dequantize
from jupyter_gemma.model.weights import ALL_ROWS, WeightSource
from jupyter_gemma.types import ProgressCallback

SHARD_BYTES = 4 * 10**9


@dataclass
class TensorSource:
    """Weights in memory by our names (a ``WeightSource``)."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """In their order."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def kind(self, name: str) -> WeightKind:
        """Always float."""
        return "float"

    def lossy(self, name: str) -> bool:
        """Never."""
        return False

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """A view."""
        return self.tensors[name][rows]

    def digest(self) -> str:
        """Nothing is cached of these."""
        return ""


def export(
    base: Path, adapter: Path, out: Path, form: Literal["safetensors", "packed"], progress: ProgressCallback
) -> None:
    """Write the model at ``base`` with an adapter merged into it.

    Args:
        form: "safetensors" (bfloat16, for any program that reads such folders), or "packed" (weights in as many bits
            as we would hold them in).

    Raises:
        BadOption: ``base`` is no folder with a tokenizer. BadCheckpoint: see ``read_adapter``.
        OSError: it cannot be written.
    """
    source = open_source(base)
    merged = MergedSource(source, read_adapter(adapter, source.config))
    _copy_rest(base, out)
    if form == "packed":
        write_packed(merged, plan_kinds(merged), out / PACKED_NAME, torch.bfloat16, progress)
    else:
        _write_shards(merged, out)


def save_model(weights: Mapping[str, Tensor], base: Path, config: ModelConfig, out: Path) -> None:
    """Write all weights of a model, with what else it needs from the folder ``base``."""
    _copy_rest(base, out)
    _write_shards(TensorSource(config, weights), out)


def _copy_rest(base: Path, out: Path) -> None:
    if not (base / "tokenizer.json").is_file() or not (base / "config.json").is_file():
        raise BadOption(
            f"{base} has no config.json and tokenizer.json beside its weights, as a GGUF file has none.",
            "Teach the safetensors version of the model, or use the adapter as it is.",
        )
    out.mkdir(parents=True, exist_ok=True)
    for file in base.iterdir():
        if file.suffix in (".json", ".jinja", ".model") and file.name != INDEX_NAME:
            shutil.copyfile(file, out / file.name)


def _write_shards(source: WeightSource, out: Path) -> None:
    shards = _shards(source.names())
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_NAME if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {their_name(name, source.config.architecture): _stored(source, name) for name in names}
        write_whole(out / file, tensors, {"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        (out / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        count = 2 * math.prod(shape)
        if shards[-1] and size + count > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += count
    return shards


def _stored(source: WeightSource, name: str) -> Tensor:
    weight = source.read(name)
    value = dequantize(weight) if isinstance(weight, Quantized) else weight.float()
    if source.config.architecture == "gemma3_text" and name.endswith("norm.weight"):
        value = value - 1  # transformers keeps Gemma 3's norms as the distance from 1
    return value.to(torch.bfloat16).contiguous()
