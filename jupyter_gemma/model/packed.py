"""Our own checkpoint format: quantised weights in one safetensors file that is memory-mapped on loading.

The layout is safetensors' own (8 bytes little-endian header length, JSON header, data without gaps), so any
reader of that format can open it. ``__metadata__`` holds the model's configuration, how each weight is stored
and the digest of the checkpoint it was made from. Tensors are written one block at a time.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.config import ModelConfig, config_from_json, config_to_json
from jupyter_gemma.model.ops import TILE_ROWS, WeightKind
from jupyter_gemma.model.quant import Quantized
from jupyter_gemma.model.weights import (
    ALL_ROWS,
    WeightSource,
    check_shapes,
    stored_blocks,
    stored_bytes,
    stored_tensors,
    tiles_name,
    weight_shapes,
)
from jupyter_gemma.types import Progress, ProgressCallback

PACKED_NAME = "packed.safetensors"
FORMAT = {"format": "jupyter-gemma-packed", "version": "2"}

_MAKE_AGAIN = "Delete it; it is made again from the original checkpoint."
_TYPE_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
}
_ALIGNMENT = 64
_LEFTOVER = ".part"
_LEFTOVER_SECONDS = 24 * 3600


class PackedSource:
    """A file that :func:`write_packed` made."""

    config: ModelConfig

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                entries = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise BadCheckpoint(f"{path} is not a whole packed model: {error}.", _MAKE_AGAIN) from error
        if {key: metadata.get(key) for key in FORMAT} != FORMAT:
            raise BadCheckpoint(f"{path} was not written by this version of jupyter-gemma.", _MAKE_AGAIN)
        try:
            self.config = config_from_json(metadata["config"])
            self.kinds: dict[str, WeightKind] = json.loads(metadata["kinds"])
            self._digest = metadata["source"]
        except (KeyError, TypeError, ValueError) as error:
            raise BadCheckpoint(f"The header of {path} cannot be read: {error!r}.", _MAKE_AGAIN) from error
        self._shapes = weight_shapes(self.config)
        self._check(entries)

    def _check(self, entries: Mapping[str, tuple[int, ...]]) -> None:
        """Every weight has its entries; where one differs, :func:`check_shapes` is given what was found to name it."""
        found = dict(entries)
        for name, shape in self._shapes.items():
            wanted = stored_tensors(name, shape, self.kinds.get(name, "float"), torch.float32)
            if all(entries.get(entry) == entry_shape for entry, (_, entry_shape) in wanted.items()):
                for entry in wanted:
                    del found[entry]
                found[name] = shape
        check_shapes(found, self.config, str(self.path))

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """In the order of the model."""
        return self._shapes

    def kind(self, name: str) -> WeightKind:
        """As it was packed."""
        return self.kinds.get(name, "float")

    def lossy(self, name: str) -> bool:
        """Quantised weights keep their kind, so this is never asked in earnest."""
        return self.kind(name) != "float"

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor | Quantized:
        """Views of the memory-mapped file."""
        kind = self.kind(name)
        key = name if kind == "float" else tiles_name(name)
        if kind != "float" and rows != ALL_ROWS:
            rows = slice(rows.start // TILE_ROWS, -(-rows.stop // TILE_ROWS))
        with safe_open(self.path, framework="pt") as file:
            part: Tensor = file.get_tensor(key) if rows == ALL_ROWS else file.get_slice(key)[rows]
        return part if kind == "float" else Quantized(kind, part)

    def digest(self) -> str:
        """That of the checkpoint it was made from."""
        return self._digest


def write_packed(
    source: WeightSource,
    kinds: Mapping[str, WeightKind],
    path: Path,
    dtype: torch.dtype,
    progress: ProgressCallback | None = None,
) -> None:
    """Write ``source`` to ``path``, quantised as ``kinds`` says and with float weights in ``dtype``.

    The file appears under its name only when it is whole and on disk; else nothing is left behind.

    Raises:
        OSError: it cannot be written (disk full, no permission).
        BadCheckpoint: a weight cannot be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    handle, name = tempfile.mkstemp(suffix=_LEFTOVER, dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, source, kinds, dtype, progress)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left; a file that still grows is younger."""
    for part in folder.glob(f"*{_LEFTOVER}"):
        if time.time() - part.stat().st_mtime > _LEFTOVER_SECONDS:
            part.unlink(missing_ok=True)


def _write(
    file: BinaryIO,
    source: WeightSource,
    kinds: Mapping[str, WeightKind],
    dtype: torch.dtype,
    progress: ProgressCallback | None,
) -> None:
    shapes = source.names()
    header, places = _header(source, kinds, dtype)
    file.write(header)
    done, total = 0, stored_bytes(shapes, kinds, dtype)
    for name in shapes:
        for block in stored_blocks(source, name, kinds[name], dtype):
            for entry, tensor in block.items():
                data = tensor.contiguous().view(torch.uint8).numpy().data
                file.seek(places[entry])
                file.write(data)
                places[entry] += data.nbytes
                done += data.nbytes
            if progress is not None:
                progress(Progress("packing weights", done, total))


def _header(source: WeightSource, kinds: Mapping[str, WeightKind], dtype: torch.dtype) -> tuple[bytes, dict[str, int]]:
    """The header's bytes, and where in the file each tensor begins. Wide types first, so all are aligned."""
    entries = {
        entry: parts
        for name, shape in source.names().items()
        for entry, parts in stored_tensors(name, shape, kinds[name], dtype).items()
    }
    metadata = {
        **FORMAT,
        "config": config_to_json(source.config),
        "kinds": json.dumps(dict(kinds)),
        "source": source.digest(),
    }
    listing: dict[str, Any] = {"__metadata__": metadata}
    offset, places = 0, {}
    for entry, (entry_dtype, shape) in sorted(entries.items(), key=lambda item: -item[1][0].itemsize):
        end = offset + math.prod(shape) * entry_dtype.itemsize
        listing[entry] = {"dtype": _TYPE_NAMES[entry_dtype], "shape": shape, "data_offsets": (offset, end)}
        places[entry], offset = offset, end
    text = json.dumps(listing).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {entry: begin + place for entry, place in places.items()}
