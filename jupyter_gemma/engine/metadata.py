"""The key-value head of a GGUF file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian). Written
by hand because ``gguf.GGUFReader`` makes two arrays of every string: twelve seconds for a Gemma vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jupyter_gemma.errors import BadCheckpoint

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9


def read_metadata(path: Path) -> dict[str, Any]:
    """All keys of the GGUF file ``path`` with their values; arrays become lists.

    Raises:
        BadCheckpoint: not a GGUF file, another version, or cut short before its tensors.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Head(data).read()
    except (OSError, struct.error, ValueError, KeyError, OverflowError) as error:
        raise BadCheckpoint(f"{path} is not a whole GGUF file: {error}.", "Fetch the file again.") from error


class _Head:
    """A cursor over the head of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def read(self) -> dict[str, Any]:
        magic, version, _, keys = (self._bytes(4), self._number("<I"), self._number("<Q"), self._number("<Q"))
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it starts with {magic!r}, version {version}")
        return {self._string(): self._value(self._number("<I")) for _ in range(keys)}

    def _bytes(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise ValueError(f"it ends at byte {len(self._data)} inside its head")
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
        if kind in _SCALARS:
            form = np.dtype(_SCALARS[kind])
            return list(np.frombuffer(self._bytes(count * form.itemsize), form).tolist())
        one: Callable[[], Any] = self._string if kind == _STRING else lambda: self._value(kind)
        return [one() for _ in range(count)]
