"""The head of a GGUF file: its metadata and where its tensors lie.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. Read here
because ``gguf.GGUFReader`` makes arrays of every single string: twelve seconds for a Gemma vocabulary.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.weights import FETCH_AGAIN

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies; ``shape`` is logical, slowest dimension first."""

    file: Path
    key: str
    type: gguf.GGMLQuantizationType
    offset: int
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row; a row is a whole number of blocks."""
        values, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(self.shape[-1] // values * size)

    def rows(self) -> NDArray[np.uint8]:
        """The raw bytes, mapped: uint8 [rows, row_bytes]."""
        return np.memmap(self.file, np.uint8, "r", self.offset, (math.prod(self.shape[:-1]), self.row_bytes))


@dataclass(frozen=True)
class Head:
    """``metadata`` holds plain Python values (arrays are lists), ``tensors`` goes by the file's own names."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Entry]


def read_head(path: Path) -> Head:
    """Read and check the head of a GGUF file.

    Raises:
        BadCheckpoint: not a GGUF file, another version, or shorter than its tensors need.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = _Cursor(path, data).head()
            size = len(data)
    except (OSError, struct.error, ValueError, KeyError, OverflowError) as error:
        raise BadCheckpoint(f"{path} is not a whole GGUF file: {error}.", FETCH_AGAIN) from error
    for entry in head.tensors.values():
        end = entry.offset + math.prod(entry.shape[:-1]) * entry.row_bytes
        if end > size:
            raise BadCheckpoint(f"{path} ends at byte {size}, inside the tensor {entry.key}.", FETCH_AGAIN)
    return head


class _Cursor:
    """A place in the file that moves on with every read."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 0

    def head(self) -> Head:
        magic, version = self._bytes(4), self._number("<I")
        if magic != b"GGUF" or version not in _VERSIONS:
            raise ValueError(f"it begins with {magic!r}, version {version}")
        tensors, keys = self._number("<Q"), self._number("<Q")
        metadata = {self._string(): self._value(self._number("<I")) for _ in range(keys)}
        entries = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"its alignment is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        return Head(self._path, metadata, {entry.key: replace(entry, offset=begin + entry.offset) for entry in entries})

    def _tensor(self) -> Entry:
        """Its offset counts from the end of the head, which is not known yet."""
        key, dimensions = self._string(), self._number("<I")
        shape = tuple(self._number("<Q") for _ in range(dimensions))
        type_, offset = gguf.GGMLQuantizationType(self._number("<I")), self._number("<Q")
        if not shape or 0 in shape or shape[0] % gguf.GGML_QUANT_SIZES[type_][0]:
            raise ValueError(f"its tensor {key} has the shape {list(shape[::-1])} in type {type_.name}")
        return Entry(self._path, key, type_, offset, shape[::-1])

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)}, inside its head")
        found = self._data[self._at : end]
        self._at = end
        return found

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._bytes(self._number("<Q")).decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == _ARRAY:
            return self._array(self._number("<I"), self._number("<Q"))
        return self._string() if kind == _STRING else self._number(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        form = np.dtype(_SCALARS[kind])
        return list(np.frombuffer(self._bytes(count * form.itemsize), form).tolist())
