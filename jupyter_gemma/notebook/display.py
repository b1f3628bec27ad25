"""Answers and how they are shown: streamed into one display, with a line on what was sent."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from jupyter_gemma.errors import GemmaError
from jupyter_gemma.notebook.harmless import harmless
from jupyter_gemma.notebook.items import Item
from jupyter_gemma.notebook.plots import thumbnail
from jupyter_gemma.types import Chunk, FinishReason, ImagePart, Part, Progress, Usage

SECONDS_BETWEEN_UPDATES = 0.1


@dataclass(frozen=True)
class Answer:
    """What a model answered, and what it was sent.

    ``parts`` are the parts of the question; ``sent`` says in words what its objects became, ``thumbnails`` are small
    PNGs of its pictures. ``finish`` "cancelled" marks an answer that was stopped, "length" one that was cut.
    """

    text: str = ""
    thinking: str = ""
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    finish: FinishReason | None = None
    parts: tuple[Part, ...] = ()
    sent: tuple[str, ...] = ()
    thumbnails: tuple[bytes, ...] = field(default=(), repr=False)
    notice: str = ""
    shown_in: int | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    def _ipython_display_(self) -> None:
        """Show nothing where the stream has just shown this answer; else leave it to the rich repr."""
        shell = _shell()
        if shell is None or self.shown_in != shell.execution_count:
            raise NotImplementedError

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return bundle(self)


class Stopped(KeyboardInterrupt):
    """The user stopped an answer; ``answer`` is what had come until then."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("The answer was stopped.")
        self.answer = answer

    def _render_traceback_(self) -> list[str]:
        return ["Stopped: the part that had come is kept."]


def draft_of(items: list[tuple[str, Item]]) -> Answer:
    """An answer to come, which knows what is being sent."""
    sent = tuple(f"{label} ({item.note})" if label else item.note for label, item in items if item.note)
    pictures = [part.data for _, item in items for part in item.parts if isinstance(part, ImagePart)]
    return Answer(sent=sent, thumbnails=tuple(thumbnail(data) for data in pictures))


# -- as text -----------------------------------------------------------------------------------------------------


def bundle(answer: Answer, status: str = "") -> dict[str, str]:
    """MIME type -> text. ``status`` stands in for an answer that is still to come."""
    facts = _facts(answer) if answer.finish else []
    pictures = "".join(f"![sent]({_data_uri(data)}) " for data in answer.thumbnails) if answer.finish else ""
    small = [f"<sub>{line}</sub>" for line in facts]
    waiting = f"*{status}*" if status else ""
    markdown = [harmless(answer.text) or waiting, *([f"{pictures}{small[0]}", *small[1:]] if small else [])]
    plain = [answer.text or status, *(f"[{line}]" for line in facts)]
    return {"text/markdown": "\n\n".join(markdown), "text/plain": "\n\n".join(plain)}


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _facts(answer: Answer) -> list[str]:
    """The lines under an answer: how it ended, what was sent, tokens and speed, the model's notice."""
    endings = {"cancelled": "stopped", "length": "cut: --max-tokens allows more"}
    facts = [endings[answer.finish]] if answer.finish in endings else []
    facts += [f"sent {', '.join(harmless(words) for words in answer.sent)}"] if answer.sent else []
    facts += [words for words in (_token_words(answer.usage), _speed_words(answer.usage), answer.model) if words]
    return [" · ".join(facts), *([answer.notice] if answer.notice else [])]


def _token_words(usage: Usage) -> str:
    counts = {"text": usage.text_tokens, "image": usage.image_tokens, "audio": usage.audio_tokens}
    words = " + ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{words} tokens, {usage.completion_tokens} answered" if words else ""


def _speed_words(usage: Usage) -> str:
    if usage.completion_tokens < 2 or usage.decode_seconds <= 0:
        return ""
    return f"{usage.completion_tokens / usage.decode_seconds:.0f} tokens/s"


def progress_words(progress: Progress) -> str:
    """ "loading demo 40%"; without a total only the phase."""
    return f"{progress.phase} {100 * progress.done // progress.total}%" if progress.total else progress.phase


# -- as it comes -------------------------------------------------------------------------------------------------


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
        if self._handle is None or self._clock() >= self._next:
            self._show(bundle(answer, status or "…"))

    def finish(self, answer: Answer) -> Answer:
        """Show the last state at once."""
        self._show(bundle(answer))
        shell = _shell()
        return replace(answer, shown_in=shell.execution_count if shell else None)

    def _show(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)
        self._next = self._clock() + SECONDS_BETWEEN_UPDATES


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
        sys.stdout.write("".join(f"\n[{line}]" for line in _facts(answer)) + "\n")
        shell = _shell()
        return replace(answer, shown_in=shell.execution_count if shell else None)


def view_here() -> View:
    """The view for where this code runs: a kernel, a terminal, or a program without IPython."""
    shell = _shell()
    if shell is None:
        return SilentView()
    return NotebookView() if hasattr(shell, "kernel") else TerminalView()


def _shell() -> Any:
    """The running IPython, without importing it where there is none."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def collect(chunks: Iterator[Chunk], answer: Answer, view: View) -> Answer:
    """Take the answer in, showing it as it comes.

    Closing ``chunks``, which every way out of here does, makes the server stop.

    Raises:
        Stopped: the user interrupted; what had come stays on display and in ``error.answer``.
        GemmaError: from the client; what had come stays on display.
    """
    try:
        for chunk in chunks:
            answer = _plus(answer, chunk)
            view.update(answer, _status(answer, chunk))
    except KeyboardInterrupt as interrupt:
        close(chunks)
        raise Stopped(view.finish(replace(answer, finish="cancelled"))) from interrupt
    except GemmaError:
        view.finish(replace(answer, finish="cancelled") if answer.text else answer)
        raise
    finally:
        close(chunks)
    return view.finish(replace(answer, finish=answer.finish or "stop"))


def close(chunks: Iterator[Chunk]) -> None:
    """End a stream early; the server stops computing."""
    if isinstance(chunks, Generator):
        chunks.close()


def _plus(answer: Answer, chunk: Chunk) -> Answer:
    return replace(
        answer,
        text=answer.text + chunk.text,
        thinking=answer.thinking + chunk.thinking,
        usage=chunk.usage or answer.usage,
        finish=chunk.finish or answer.finish,
    )


def _status(answer: Answer, chunk: Chunk) -> str:
    if chunk.progress:
        return progress_words(chunk.progress)
    return "thinking…" if answer.thinking and not answer.text else ""
