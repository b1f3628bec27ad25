"""EchoEngine: a scripted :class:`~jupyter_gemma.types.Engine` for tests, browser tests and examples.

``jupyter gemma serve --engine echo`` offers the models of :data:`ECHO_MODELS`, so that a whole process can be
tried out without weights. Needs no library.
"""

from __future__ import annotations

import json
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
    Segment,
    TextPart,
    TokenChance,
    ToolCall,
    Usage,
    VideoPart,
)

ECHO_MODELS = (
    ModelCard("echo", "Echo", "A test engine: it repeats what it got.", ("text", "image", "audio")),
    ModelCard("echo-slow", "Slow echo", "A test engine: slow to load, then one word every 50 ms.", ("text",)),
    ModelCard("echo-broken", "Broken echo", "A test engine: it cannot be loaded.", ("text",)),
    ModelCard("echo-base", "Base echo", "A test engine: it also continues texts.", ("text", "audio"), instruct=False),
)

KEPT = 1000


@dataclass(frozen=True, slots=True)
class Reply:
    """One scripted answer: the chunks, seconds before each of them, and the error raised after the last."""

    chunks: tuple[Chunk, ...] = ()
    delay: float = 0.0
    error: GemmaError | None = None


class EchoEngine:
    """Answers by a script, then by naming what it got.

    ``steps`` counts the chunks begun, over all answers; ``cancelled`` says whether the last answer was cut short;
    ``closed`` whether :meth:`close` was called; ``requests`` is what was asked last (at most :data:`KEPT`).
    """

    def __init__(self, card: ModelCard = ECHO_MODELS[0], script: Sequence[Reply] = (), delay: float = 0.0) -> None:
        self.card = card
        self.delay = delay
        self.steps = 0
        self.cancelled = False
        self.closed = threading.Event()
        self.requests: deque[Request] = deque(maxlen=KEPT)
        self._asked = 0
        self._script = deque(script)
        self._active = 0
        self._lock = threading.Lock()

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.stream`. A scripted answer without a finish gets one."""
        with self._lock:
            self.requests.append(request)
            self._asked += 1
            reply = self._script.popleft() if self._script else echo(request, self.delay)
            self._active += 1
        self.cancelled = False
        try:
            yield from self._play(reply, request, cancel)
        finally:
            with self._lock:
                self._active -= 1

    def _play(self, reply: Reply, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
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

    def transcribe(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.transcribe`: a second for each word that :meth:`stream` would say."""
        for number, chunk in enumerate(self.stream(request, cancel)):
            word = chunk.text.strip()
            yield Chunk(segment=Segment(float(number), number + 1.0, word)) if word else chunk

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
        return EngineStatus(active=self._active, requests=self._asked, steps=self.steps, quantization="none")

    def close(self) -> None:
        """See :meth:`jupyter_gemma.types.Engine.close`."""
        self.closed.set()


def echo(request: Request, delay: float = 0.0) -> Reply:
    """The answer that names what the last user turn held, a word per chunk.

    A form is kept (not a pattern: that stays the words), and "call NAME" calls that tool.
    """
    turns = [message for message in request.messages if message.role == "user"]
    text = describe(turns[-1]) if turns else "No question."
    for tool in request.tools:
        if text == f"call {tool['function']['name']}":
            call = ToolCall(tool["function"]["name"], {"text": text}, "call_1")
            return Reply((Chunk(tool_call=call), _last(request, "tool_calls", 1, time.perf_counter())), delay)
    words = re.findall(r"\s*\S+", _formed(text, request))
    limit = request.sampling.max_tokens
    chunks = [Chunk(thinking="Looking at what arrived.")] if request.thinking else []
    chunks += [Chunk(text=word, logprobs=_chances(word, request.sampling.logprobs)) for word in words[:limit]]
    if limit is not None and limit < len(words):
        chunks.append(_last(request, "length", limit, time.perf_counter()))
    return Reply(tuple(chunks), delay)


def _formed(text: str, request: Request) -> str:
    constraint = request.constraint
    if constraint is None or constraint.kind == "regex":
        return text
    return str(constraint.value[0]) if constraint.kind == "choice" else json.dumps({"echo": text}, ensure_ascii=False)


def _chances(word: str, alternatives: int | None) -> tuple[TokenChance, ...]:
    """A word that was nearly certain, and the word backwards in its place."""
    if alternatives is None:
        return ()
    top = (TokenChance(word, word.encode(), -0.1), TokenChance(word[::-1], word[::-1].encode(), -2.5))
    return (TokenChance(word, word.encode(), -0.1, top[:alternatives]),)


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
