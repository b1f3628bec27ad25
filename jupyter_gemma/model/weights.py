"""The weights of a model by name, whatever file they come from.

Names are those of the 12B checkpoint without the prefixes ``model.language_model.`` and ``model.``. A quantised
weight ``X.weight`` is stored as the tensor ``X.tiles`` (see ``quant.Quantized``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.config import AttentionConfig, ModelConfig
from jupyter_gemma.model.ops import TILE_ROWS, WeightKind
from jupyter_gemma.model.quant import Quantized, fits, quantize, tiles_shape

ALL_ROWS = slice(None)
TABLE = "embed_tokens.weight"
FETCH_AGAIN = "Fetch the checkpoint again."

# Values converted at a time: 16 MB of float32, so that converting never costs more than a few such blocks.
_BLOCK_VALUES = 4 << 20


class WeightSource(Protocol):
    """A checkpoint whose tensors were all found and have the right shapes. Files are only open during ``read``."""

    config: ModelConfig

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Every weight with its logical shape, in an order that is good to read in."""
        ...

    def kind(self, name: str) -> WeightKind:
        """How the file stores it."""
        ...

    def lossy(self, name: str) -> bool:
        """Whether it was already rounded to few bits, so that rounding it to four again would lose too much."""
        ...

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor | Quantized:
        """The weight, or some rows of it: a float tensor or, where ``kind`` is not float, a ``Quantized``.

        Rows of a quantised weight begin and end at tiles, that is at multiples of 16.
        """
        ...

    def digest(self) -> str:
        """Hexadecimal identity of the files, without reading them whole."""
        ...


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and logical shape of every weight of a model."""
    shapes: dict[str, tuple[int, ...]] = {TABLE: (config.vocab_size, config.hidden_size)}
    for index in range(len(config.layers)):
        for name, shape in _layer_shapes(config, config.layer(index)).items():
            shapes[f"layers.{index}.{name}"] = shape
    shapes["norm.weight"] = (config.hidden_size,)
    if config.backbone_size is not None:
        shapes["pre_projection.weight"] = (config.hidden_size, 2 * config.backbone_size)
        shapes["post_projection.weight"] = (config.backbone_size, config.hidden_size)
    return {**shapes, **_media_shapes(config)}


def _layer_shapes(config: ModelConfig, attention: AttentionConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    shapes: dict[str, tuple[int, ...]] = {f"{norm}.weight": (hidden,) for norm in norms}
    shapes["self_attn.q_proj.weight"] = (queries, hidden)
    shapes["self_attn.q_norm.weight"] = (attention.head_dim,)
    if config.backbone_size is None:  # a drafter looks at the keys and values of its model
        shapes["self_attn.k_proj.weight"] = (keys, hidden)
        shapes["self_attn.k_norm.weight"] = (attention.head_dim,)
        if not attention.value_from_key:
            shapes["self_attn.v_proj.weight"] = (keys, hidden)
    shapes["self_attn.o_proj.weight"] = (hidden, queries)
    shapes["mlp.gate_proj.weight"] = shapes["mlp.up_proj.weight"] = (inner, hidden)
    shapes["mlp.down_proj.weight"] = (hidden, inner)
    if config.layer_scalar:
        shapes["layer_scalar"] = (1,)
    return shapes


def _media_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if config.vision is not None:
        width, values = config.vision.embed_dim, config.vision.patch_values
        for norm, size in (("patch_ln1", values), ("patch_ln2", width), ("pos_norm", width)):
            shapes[f"vision_embedder.{norm}.weight"] = shapes[f"vision_embedder.{norm}.bias"] = (size,)
        shapes["vision_embedder.patch_dense.weight"] = (width, values)
        shapes["vision_embedder.patch_dense.bias"] = (width,)
        shapes["vision_embedder.pos_embedding"] = (config.vision.positions, 2, width)
        shapes["embed_vision.embedding_projection.weight"] = (config.hidden_size, width)
    if config.audio is not None:
        shapes["embed_audio.embedding_projection.weight"] = (config.hidden_size, config.audio.frame)
    return shapes


def check_shapes(
    found: Mapping[str, tuple[int, ...]], config: ModelConfig, where: str, label: Callable[[str], str] = str
) -> None:
    """Compare what a file holds with what the model needs.

    Args:
        found: our name -> shape.
        where: the file or folder, for messages.
        label: our name -> the name used in that file, for messages.

    Raises:
        BadCheckpoint: a tensor is missing, has another shape, or is unknown; it is named.
    """
    expected = weight_shapes(config)
    for name, shape in expected.items():
        if name not in found:
            raise BadCheckpoint(f"{where} lacks the tensor {label(name)} of shape {list(shape)}.", FETCH_AGAIN)
        if found[name] != shape:
            raise BadCheckpoint(
                f"The tensor {label(name)} in {where} has shape {list(found[name])}, not {list(shape)}.",
                "The weights and their configuration belong to different models: fetch both again.",
            )
    for name in found:
        if name not in expected:
            raise BadCheckpoint(
                f"{where} has a tensor {label(name)} that its configuration does not account for.",
                "Use the checkpoint as its authors published it.",
            )


def quantisable(name: str, shape: tuple[int, ...]) -> bool:
    """Decoder linears and the embedding, if they fall into whole tiles; all else stays float."""
    decoder_linear = name.startswith("layers.") and name.endswith("_proj.weight")
    return (decoder_linear or name == TABLE) and fits(shape)


def stored_tensors(
    name: str, shape: tuple[int, ...], kind: WeightKind, dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The state-dict entries that hold a weight, with their dtypes and shapes."""
    if kind == "float":
        return {name: (dtype, shape)}
    return {tiles_name(name): (torch.uint8, tiles_shape(shape, kind))}


def tiles_name(name: str) -> str:
    """The state-dict entry of a quantised weight."""
    return f"{name.removesuffix('weight')}tiles"


def stored_bytes(shapes: Mapping[str, tuple[int, ...]], kinds: Mapping[str, WeightKind], dtype: torch.dtype) -> int:
    """Bytes that the weights take in memory."""
    entries = (
        entry for name, shape in shapes.items() for entry in stored_tensors(name, shape, kinds[name], dtype).values()
    )
    return sum(math.prod(shape) * entry_dtype.itemsize for entry_dtype, shape in entries)


def stored_weight(source: WeightSource, name: str, kind: WeightKind, dtype: torch.dtype) -> dict[str, Tensor]:
    """The entries of a weight, filled; they are views of the file where nothing has to be converted.

    Quantising goes block by block, so it needs little more memory than its result.
    """
    shape = source.names()[name]
    if source.kind(name) == kind:
        return _entries(name, source.read(name), kind, dtype)
    whole = {
        entry: torch.empty(entry_shape, dtype=entry_dtype)
        for entry, (entry_dtype, entry_shape) in stored_tensors(name, shape, kind, dtype).items()
    }
    start = 0
    for block in stored_blocks(source, name, kind, dtype):
        for entry, tensor in block.items():
            whole[entry][start : start + len(tensor)] = tensor
        start += len(tensor)
    return whole


def stored_blocks(source: WeightSource, name: str, kind: WeightKind, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """The same, some rows at a time."""
    shape = source.names()[name]
    step = max(1, _BLOCK_VALUES // (math.prod(shape[1:]) * TILE_ROWS)) * TILE_ROWS
    for start in range(0, shape[0], step):
        yield _entries(name, source.read(name, slice(start, start + step)), kind, dtype)


def _entries(name: str, value: Tensor | Quantized, kind: WeightKind, dtype: torch.dtype) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        if kind == "float":
            return {name: value.to(dtype)}
        value = quantize(value, kind)
    return {tiles_name(name): value.tiles}


def digest_of_files(paths: Iterable[Path]) -> str:
    """Identity of files by name, size and time of change."""
    found = hashlib.sha256()
    for path in sorted(paths):
        status = path.stat()
        found.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return found.hexdigest()
