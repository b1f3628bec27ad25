"""Answers kept on disk under the digest of everything that decides them, so that "Run all" is instant.

One JSON file an answer, readable by its owner only; the ones not used for longest go first.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jupyter_gemma.notebook.exchange import Exchange
from jupyter_gemma.types import Usage

MAX_BYTES = 64 * 1024 * 1024


class AnswerCache:
    """The answers in ``folder``, at most ``max_bytes`` of them."""

    def __init__(self, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, key: str) -> dict[str, Any] | None:
        """The fields of :class:`Exchange` that were kept; None if there are none, or their file is damaged."""
        path = self._path(key)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            kept["usage"] = Usage(**kept["usage"])
        except (OSError, ValueError, TypeError, KeyError):
            return None
        with suppress(OSError):
            os.utime(path)
        return dict(kept)

    def put(self, key: str, answer: Exchange) -> None:
        """Keep a whole answer; a disk that takes none is no reason to fail."""
        kept = {
            "text": answer.text,
            "thinking": answer.thinking,
            "finish": answer.finish,
            "usage": asdict(answer.usage),
            "record": {name: value for name, value in answer.record.items() if name != "inputs"},
            "cached": time.strftime("%Y-%m-%d %H:%M"),
        }
        with suppress(OSError):
            self._write(self._path(key), kept)
            self._evict()

    def clear(self) -> None:
        """Forget all answers."""
        for path in self.folder.glob("*.json"):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _write(self, path: Path, kept: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.partial")
        partial.touch(mode=0o600)
        partial.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
        partial.replace(path)

    def _evict(self) -> None:
        files = [(path.stat(), path) for path in self.folder.glob("*.json")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size
