"""EchoEngine: a scripted :class:`~jupyter_gemma.types.Engine` for tests, browser tests and examples.

``jupyter gemma serve --engine echo`` offers the models of :data:`ECHO_MODELS`, so that a whole process can be
tried out without weights. Needs no library.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from jupyter_gemma.errors import BadCheckpoint, GemmaError, UnknownModel
from jupyter_gemma.types import (
    AudioPart,
    Chunk,
    EngineStatus,
    FinishReason,
    ImagePart,
    Message,
    ModelCard,
    Part,
    Progress,
    ProgressCallback,
    Request,
    TextPart,
    Usage,
    VideoPart,
)

ECHO_MODELS = (
    ModelCard("echo", "Echo", "A test engine: it repeats what it got.", ("text", "image", "audio")),
    ModelCard("echo-slow", "Slow echo", "A test engine: slow to load, then one word every 50 ms.", ("text",)),
    ModelCard("echo-broken", "Broken echo", "A test engine: it cannot be loaded.", ("text",)),
)


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer: the chunks, seconds before each of them, and the error raised after the last."""

    chunks: tuple[Chunk, ...] = ()
    delay: float = 0.0
    error: GemmaError | None = None


class EchoEngine:
    """Answers by a script, then by naming what it got.

    ``steps`` counts the chunks begun, over all answers; ``cancelled`` says whether the last answer was cut short;
    ``closed`` whether :meth:`close` was called; ``requests`` is what was asked.
    """

    def __init__(self, card: ModelCard = ECHO_MODELS[0], script: Sequence[Reply] = (), delay: float = 0.0) -> None:
        self.card = card
        self.delay = delay
        self.steps = 0
        self.cancelled = False
        self.closed = threading.Event()
        self.requests: list[Request] = []
        self._script = deque(script)

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.stream`. A scripted answer without a finish gets one."""
        self.requests.append(request)
        reply = self._script.popleft() if self._script else echo(request, self.delay)
        self.cancelled = False
        started = time.perf_counter()
        done = 0
        for chunk in reply.chunks:
            self.steps += 1
            if cancel.wait(reply.delay) or self.closed.is_set():
                self.cancelled = True
                yield _last(request, "cancelled", done, started)
                return
            done += 1
            yield chunk
        if reply.error is not None:
            raise reply.error
        if not reply.chunks or reply.chunks[-1].finish is None:
            yield _last(request, "stop", done, started)

    def render(self, request: Request) -> str:
        """See :meth:`jupyter_gemma.types.Engine.render`: a line for each message."""
        return "".join(f"{message.role}: {describe(message)}\n" for message in request.messages)

    def count(self, request: Request) -> Usage:
        """See :meth:`jupyter_gemma.types.Engine.count`: a token a word, picture and clip."""
        return _count(request)

    def tokenize(self, text: str) -> list[int]:
        """See :meth:`jupyter_gemma.types.Engine.tokenize`: the lengths of the words."""
        return [len(word) for word in text.split()]

    def status(self) -> EngineStatus:
        """See :meth:`jupyter_gemma.types.Engine.status`."""
        return EngineStatus(requests=len(self.requests), steps=self.steps)

    def close(self) -> None:
        """See :meth:`jupyter_gemma.types.Engine.close`."""
        self.closed.set()


def echo(request: Request, delay: float = 0.0) -> Reply:
    """The answer that names what the last user turn held, a word per chunk."""
    turns = [message for message in request.messages if message.role == "user"]
    words = re.findall(r"\s*\S+", describe(turns[-1]) if turns else "No question.")
    limit = request.sampling.max_tokens
    chunks = [Chunk(thinking="Looking at what arrived.")] if request.thinking else []
    chunks += [Chunk(text=word) for word in words[:limit]]
    if limit is not None and limit < len(words):
        chunks.append(_last(request, "length", limit, time.perf_counter()))
    return Reply(tuple(chunks), delay)


def describe(message: Message) -> str:
    """The parts of ``message`` in their order: text as it is, anything else as its kind and size."""
    return " ".join(_describe(part) for part in message.parts)


def _describe(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, VideoPart):
        return f"[video of {len(part.frames)} frames]"
    return f"[{'picture' if isinstance(part, ImagePart) else 'sound'} of {len(part.data)} bytes]"


def _count(request: Request) -> Usage:
    parts = [part for message in request.messages for part in message.parts]
    return Usage(
        text_tokens=sum(len(part.text.split()) for part in parts if isinstance(part, TextPart)),
        image_tokens=sum(isinstance(part, ImagePart | VideoPart) for part in parts),
        audio_tokens=sum(isinstance(part, AudioPart) for part in parts),
    )


def _last(request: Request, finish: FinishReason, completion_tokens: int, started: float) -> Chunk:
    seconds = time.perf_counter() - started
    usage = replace(_count(request), completion_tokens=completion_tokens, decode_seconds=seconds)
    return Chunk(finish=finish, usage=usage)


def find_echo(name: str) -> ModelCard:
    """The card of the echo model ``name``, "" for the first.

    Raises:
        UnknownModel: no echo model has that name.
    """
    for card in ECHO_MODELS:
        if name in ("", card.name):
            return card
    raise UnknownModel(
        f"There is no echo model {name!r}.", f"There are {', '.join(card.name for card in ECHO_MODELS)}."
    )


def load_echo(name: str, progress: ProgressCallback) -> EchoEngine:
    """The :class:`~jupyter_gemma.types.EngineLoader` of :data:`ECHO_MODELS`.

    Raises:
        UnknownModel: no echo model has that name.
        BadCheckpoint: for ``echo-broken``, always.
    """
    card = find_echo(name)
    if name == "echo-broken":
        raise BadCheckpoint("The model echo-broken is broken on purpose.", "Use the model echo.")
    if name != "echo-slow":
        return EchoEngine(card)
    for step in range(1, 6):
        progress(Progress(f"loading {name}", step, 5))
        time.sleep(0.1)
    return EchoEngine(card, delay=0.05)
