"""The server's log: private, rotated, and without questions and answers unless ``log_prompts`` asks for them."""

from __future__ import annotations

import logging
import os
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

LOG_BYTES = 1_000_000
LOG_FILES = 3
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
prompts = logging.getLogger("jupyter_gemma.prompts")


class ServerLog(RotatingFileHandler):
    """A log file that only its owner can read; what the process prints goes there too, before and after rotation."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", errors="replace")
        self.setFormatter(logging.Formatter(FORMAT))
        self._redirect()

    def doRollover(self) -> None:  # noqa: N802 - logging's name
        """Begin a new file."""
        super().doRollover()
        self._redirect()

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return open(descriptor, self.mode, encoding=self.encoding, errors=self.errors)  # noqa: PTH123 - open() of a descriptor

    def _redirect(self) -> None:
        if self.stream is not None:
            for printed in (1, 2):
                os.dup2(self.stream.fileno(), printed)


def set_up(log_prompts: bool, path: Path | None) -> None:
    """Log into ``path``, or to stderr without one."""
    handlers = [ServerLog(path)] if path else None
    logging.basicConfig(level=logging.INFO, format=FORMAT, handlers=handlers)
    prompts.setLevel(logging.DEBUG if log_prompts else logging.INFO)
    # What uvicorn says of an error of ours is said by log_bug, without what the error's message may quote.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not record.exc_info)


def log_bug(logger: logging.Logger, error: Exception) -> None:
    """Say where ``error`` came from; its message may quote a question, so it stays out unless those are logged."""
    where = "".join(traceback.format_tb(error.__traceback__))
    shown = f": {error}" if prompts.isEnabledFor(logging.DEBUG) else ""
    logger.error("An internal error, %s%s\n%s", type(error).__name__, shown, where)
