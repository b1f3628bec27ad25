"""Compute kernels of jupyter-gemma as plain C functions over raw pointers.

Knows bytes and numbers, not torch: a caller passes addresses of contiguous arrays (for a tensor,
``tensor.data_ptr()``), so one wheel serves every Python and every torch. What each function computes stands
in ``src/kernels.h``; the plain-torch twins are in ``jupyter_gemma/model/ops.py``. ctypes lets go of the
interpreter lock during a call.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

__version__ = "0.1.0"

INSTRUCTION_SETS = ("avx512-vnni", "avx2", "neon-dotprod", "portable")

_NAMES = {"darwin": "libjupyter_gemma_kernels.dylib", "win32": "jupyter_gemma_kernels.dll"}
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "jg_isa": (ctypes.c_char_p, (ctypes.c_char_p,)),
    "jg_use_threads": (None, (_INT,)),
    "jg_threads": (_INT, ()),
    "jg_product": (None, (_INT, _POINTER, _LONG, _POINTER, _LONG, _LONG, _POINTER)),
    "jg_rms_norm": (None, (_POINTER,) * 4 + (_LONG, _LONG, _FLOAT)),
    "jg_softcap": (None, (_POINTER, _FLOAT, _LONG)),
    "jg_gated_gelu": (None, (_POINTER, _POINTER, _POINTER, _LONG)),
    "jg_attend": (None, (_POINTER, *(_LONG,) * 4, _INT, _FLOAT)),
}


class Kernels:
    """The loaded library. Methods are the C functions, without their prefix."""

    def __init__(self) -> None:
        path = Path(__file__).with_name(_NAMES.get(sys.platform, "libjupyter_gemma_kernels.so"))
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("jg_"), function)

    def available(self) -> list[str]:
        """The instruction sets that this processor has, the fastest first."""
        before, found = self.choose(), []
        for name in INSTRUCTION_SETS:
            if self.isa(name.encode()) is not None:  # type: ignore[attr-defined]
                found.append(name)
        self.choose(before)
        return found

    def choose(self, isa: str | None = None) -> str:
        """The instruction set in use, or switch to ``isa``; ValueError where this processor lacks it."""
        name: bytes | None = self.isa(None if isa is None else isa.encode())  # type: ignore[attr-defined]
        if name is None:
            raise ValueError(f"this processor has no {isa}")
        return name.decode()
