"""How fast this machine reads memory: the limit of every step that reads all weights."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

_PIECE = 1 << 22
_FILLING, _ABSENT = 1, 2


class Memory:
    """A buffer, larger than the processor's caches, that can be read whole in several ways by all threads.

    No way is the fastest on every processor; the best of them is taken for what the machine can do.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._buffer = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Fewer look-ups of addresses: reading is somewhat faster. Not every system has them.
            with contextlib.suppress(OSError):
                self._buffer.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(self._buffer, np.uint8)
        whole[:] = _FILLING
        self._pieces = [whole[start : start + _PIECE].view(np.int64) for start in range(0, size, _PIECE)]
        self._pool = ThreadPoolExecutor(threads)

    def ways(self) -> dict[str, Callable[[], object]]:
        """Each reads the whole buffer once."""
        works: dict[str, Callable[[NDArray[np.int64]], object]] = {"sum": np.sum, "maximum": np.max}
        if os.name == "posix":
            works["search"] = _searching()
        return {name: self._by_all_threads(work) for name, work in works.items()}

    def _by_all_threads(self, work: Callable[[NDArray[np.int64]], object]) -> Callable[[], object]:
        return lambda: list(self._pool.map(work, self._pieces))


def _searching() -> Callable[[NDArray[np.int64]], object]:
    """The C library's search for a byte that is not there; vectorised in every common library."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), ctypes.c_void_p
    return lambda piece: memchr(piece.ctypes.data, _ABSENT, piece.nbytes)
