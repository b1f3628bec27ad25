"""Folders of safetensors files as transformers writes them.

The tensor names are those of google/gemma-4-12B-it (``save_pretrained`` writes the same) and of the Gemma 3
text models. The file format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.config import ModelConfig, config_from_hf
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.weights import ALL_ROWS, FETCH_AGAIN, check_shapes, digest_of_files

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
CONFIG_NAME = "config.json"

_PREFIXES = ("model.language_model.", "model.")
_FLOATS = ("F32", "BF16", "F16")


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: its file, its name there, its shape and safetensors' name of its dtype."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


class SafetensorsSource:
    """A folder with config.json and one or several safetensors files, as transformers writes it."""

    config: ModelConfig

    def __init__(self, folder: Path) -> None:
        raw = _read_json(folder / CONFIG_NAME)
        self.config = config_from_hf(raw)
        self._files = _shards(folder)
        tied = raw.get("tie_word_embeddings", True)
        self._entries = {
            name: entry for file in self._files for name, entry in _read_header(file) if not _harmless(name, tied)
        }
        self._digest = digest_of_files([*self._files, folder / CONFIG_NAME])
        for entry in self._entries.values():
            if entry.dtype not in _FLOATS:
                raise BadCheckpoint(
                    f"The tensor {entry.key} in {entry.file} has the type {entry.dtype}.",
                    f"Use a checkpoint in one of {', '.join(_FLOATS)}, or its GGUF version.",
                )
        check_shapes(self.names(), self.config, str(folder))

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """Shard by shard."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def kind(self, name: str) -> WeightKind:
        """Always float."""
        return "float"

    def lossy(self, name: str) -> bool:
        """Never."""
        return False

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """A view of the memory-mapped file, in the file's dtype; Gemma 3's norms are copied with the 1 added."""
        entry = self._entries[name]
        with safe_open(entry.file, framework="pt") as file:
            value: Tensor = file.get_tensor(entry.key) if rows == ALL_ROWS else file.get_slice(entry.key)[rows]
        # Gemma 3 stores norm weights as the distance from 1.
        return (
            value.float() + 1 if self.config.architecture == "gemma3_text" and name.endswith("norm.weight") else value
        )

    def digest(self) -> str:
        """From names, sizes and times of config.json and all shards."""
        return self._digest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadCheckpoint(f"{path} is missing.", FETCH_AGAIN) from None
    except (ValueError, OSError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {error}.", FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{path} is not a JSON object.", FETCH_AGAIN)
    return found


def _shards(folder: Path) -> list[Path]:
    if (folder / WEIGHTS_NAME).is_file():
        return [folder / WEIGHTS_NAME]
    index = _read_json(folder / INDEX_NAME).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise BadCheckpoint(f"{folder / INDEX_NAME} has no weight_map.", FETCH_AGAIN)
    names = sorted({str(name) for name in index.values()})
    for name in names:
        if Path(name).name != name:
            raise BadCheckpoint(f"{folder / INDEX_NAME} names a file outside its folder: {name}.", FETCH_AGAIN)
        if not (folder / name).is_file():
            raise BadCheckpoint(f"The shard {folder / name} is missing.", FETCH_AGAIN)
    return [folder / name for name in names]


def _read_header(path: Path) -> Iterator[tuple[str, _Entry]]:
    """Our name and place of every tensor of a file. safe_open refuses a file of the wrong length."""
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                part = file.get_slice(key)
                yield our_name(key), _Entry(path, key, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{path} is not a whole safetensors file: {error}.", FETCH_AGAIN) from error


def our_name(key: str) -> str:
    """The name that we give to what transformers calls ``key``."""
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def their_name(name: str, architecture: str) -> str:
    """What transformers calls our ``name`` in a model of that architecture: the inverse of :func:`our_name`."""
    inner = architecture == "gemma4_unified" and name.startswith(("layers.", "embed_tokens.", "norm."))
    return f"model.language_model.{name}" if inner else f"model.{name}"


def _harmless(name: str, tied: bool) -> bool:
    """Tensors that carry nothing: a second copy of the tied embedding, and tables computed from the configuration."""
    return (name == "lm_head.weight" and tied) or name.endswith("rotary_emb.inv_freq")
