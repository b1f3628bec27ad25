"""Private files that are replaced whole: a reader never sees half of one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

# What reading a file may raise that is missing, damaged, or no JSON object.
UNREADABLE = (OSError, ValueError, AttributeError)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``, readable by its owner only; what stood there before stays until all is written."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(value, stream, ensure_ascii=False)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises one of :data:`UNREADABLE`."""
    return dict(json.loads(path.read_text(encoding="utf-8")).items())
