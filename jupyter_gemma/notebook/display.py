"""Answers as they come: streamed into one display, a terminal, or nowhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from jupyter_gemma.errors import GemmaError
from jupyter_gemma.notebook.answer import Answer, Stopped
from jupyter_gemma.notebook.bundle import bundle, fact_lines, metadata, progress_words
from jupyter_gemma.notebook.exchange import ToolRun
from jupyter_gemma.notebook.items import Item
from jupyter_gemma.notebook.plots import thumbnail
from jupyter_gemma.types import Chunk, ImagePart

SECONDS_BETWEEN_UPDATES = 0.1


class View(Protocol):
    """Where an answer is shown while it comes."""

    def update(self, answer: Answer, status: str = "") -> None:
        """Show what there is, now or soon."""
        ...

    def finish(self, answer: Answer) -> Answer:
        """Show the last state; the answer knows afterwards where it stands."""
        ...


class SilentView:
    """Shows nothing."""

    def update(self, answer: Answer, status: str = "") -> None:
        """Nothing."""

    def finish(self, answer: Answer) -> Answer:
        """Nothing."""
        return answer


class NotebookView:
    """One display that is updated in place, at most ten times a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next = 0.0
        self._handle: Any = None

    def update(self, answer: Answer, status: str = "") -> None:
        """Show what there is, unless the last update was less than a tenth of a second ago."""
        if self._clock() >= self._next:
            self._show(answer, status or "…")
            self._next = self._clock() + SECONDS_BETWEEN_UPDATES

    def finish(self, answer: Answer) -> Answer:
        """Show the last state at once."""
        self._show(answer)
        return shown_here(answer)

    def _show(self, answer: Answer, status: str = "") -> None:
        from IPython.display import display

        data, about = bundle(answer, status), metadata(answer)
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True, metadata=about)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True, metadata=about)


class TerminalView:
    """Writes the answer to standard output as it comes; a terminal cannot take back what it shows."""

    def __init__(self) -> None:
        self._written = 0

    def update(self, answer: Answer, status: str = "") -> None:
        """Write what is new."""
        sys.stdout.write(answer.text[self._written :])
        sys.stdout.flush()
        self._written = len(answer.text)

    def finish(self, answer: Answer) -> Answer:
        """Write the rest and the lines under it."""
        self.update(answer)
        lines = fact_lines(answer) if answer.finish else []  # an error tells its own story
        sys.stdout.write("".join(f"\n[{line}]" for line in lines) + "\n")
        return shown_here(answer)


def view_here() -> View:
    """The view for where this code runs: a kernel, a terminal, or a program without IPython."""
    shell = _shell()
    if shell is None:
        return SilentView()
    return NotebookView() if hasattr(shell, "kernel") else TerminalView()


def shown_here(answer: Answer) -> Answer:
    """``answer``, marked as shown by the cell that runs."""
    shell = _shell()
    return replace(answer, shown_in=shell.execution_count if shell else None)


def _shell() -> Any:
    """The running IPython, without importing it where there is none."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def draft_of(items: list[tuple[str, Item]]) -> Answer:
    """An answer to come, which knows what is being sent."""
    sent = tuple(f"{label} ({item.note})" if label else item.note for label, item in items if item.note)
    pictures = [part.data for _, item in items for part in item.parts if isinstance(part, ImagePart)]
    return Answer(sent=sent, thumbnails=tuple(thumbnail(data) for data in pictures))


def collect(
    pieces: Iterable[Chunk | ToolRun], answer: Answer, view: View, seal: Callable[[Answer], Answer] = lambda said: said
) -> Answer:
    """Take the answer in, showing it as it comes; a whole one is passed through ``seal`` before it is shown.

    Closing ``pieces``, which every way out of here does, makes the server stop.

    Raises:
        Stopped: the user interrupted; what had come stays on display and in ``error.answer``.
        GemmaError: from the client; what had come stays on display.
    """
    stream = iter(pieces)
    try:
        for piece in stream:
            answer = _plus(answer, piece)
            view.update(answer, _status(answer, piece))
    except KeyboardInterrupt as interrupt:
        close(stream)
        raise Stopped(view.finish(replace(answer, finish="cancelled"))) from interrupt
    except GemmaError:
        view.finish(replace(answer, finish="cancelled") if answer.text else answer)
        raise
    finally:
        close(stream)
    return view.finish(seal(replace(answer, finish=answer.finish or "stop")))


def close(pieces: Iterator[Any]) -> None:
    """End a stream early; the server stops computing."""
    if isinstance(pieces, Generator):
        pieces.close()


def _plus(answer: Answer, piece: Chunk | ToolRun) -> Answer:
    if isinstance(piece, ToolRun):
        return replace(answer, trace=(*answer.trace, piece))
    return replace(
        answer,
        text=answer.text + piece.text,
        thinking=answer.thinking + piece.thinking,
        usage=piece.usage or answer.usage,
        finish=piece.finish or answer.finish,
    )


def _status(answer: Answer, piece: Chunk | ToolRun) -> str:
    if isinstance(piece, ToolRun):
        return f"{piece.name} was called"
    if piece.progress:
        return progress_words(piece.progress)
    return "thinking…" if answer.thinking and not answer.text else ""
