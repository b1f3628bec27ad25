"""How much memory this process takes."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def memory_bytes() -> int:
    """The resident memory of this process; where the system does not say it, the most that it ever was, or 0."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _largest()


def _largest() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
