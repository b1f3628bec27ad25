"""The contract between the layers: plain values and the :class:`Engine` protocol.

Everyone may import this module; it imports nothing of ours and no library. A value that crosses a layer
(notebook -> client -> server -> engine and back) is one of these classes; the OpenAI wire form is only
known to ``server/openai_api.py`` and ``client.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Role = Literal["system", "user", "assistant", "tool"]
Modality = Literal["text", "image", "audio"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text, where it stands in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One picture as an encoded file (PNG, JPEG, WebP, GIF, BMP, TIFF)."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class AudioPart:
    """One clip as an encoded file (WAV, FLAC, OGG, MP3, whatever libsndfile or librosa reads)."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a video: its time in seconds and its encoded file."""

    seconds: float
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class VideoPart:
    """A video, already sampled: the model sees each frame as a picture with its time before it."""

    frames: tuple[Frame, ...]


Part = TextPart | ImagePart | AudioPart | VideoPart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model asks for ``name(**arguments)``. ``id`` ties the result to the call."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``tool_calls`` stand in assistant turns, ``tool_call_id`` and ``name`` in tool turns."""

    role: Role
    parts: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """The text parts joined; media are left out."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. ``None`` means: what the checkpoint's generation_config.json says.

    temperature 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 switch the
    filter off. ``seed`` makes a sampled answer repeatable on one device and build. ``logprobs``: report the chance
    of each token of the answer, and of that many alternatives (0 to 20).
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Constraint:
    """The form an answer must have; thoughts and tool calls are free of it.

    ``kind`` and ``value``: "json" (any JSON object; no value), "json_schema" (the schema), "regex" (the whole answer
    matches it), "choice" (a list of texts; the answer is one of them).
    """

    kind: Literal["json", "json_schema", "regex", "choice"]
    value: Any = None


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an engine.

    ``model`` "" means the server's default. ``image_tokens`` is the budget of soft tokens a picture gets
    (70, 140, 280, 560 or 1120; None: the checkpoint's own). ``tools`` are OpenAI function declarations.
    ``adapter`` names what is added to the model's weights for this answer ("": what the server was started with,
    "none": nothing). ``client`` names who asks: clients take turns when there is more to do than fits; "" shares one
    turn.
    """

    messages: tuple[Message, ...]
    model: str = ""
    sampling: Sampling = Sampling()
    thinking: bool = False
    image_tokens: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    constraint: Constraint | None = None
    client: str = ""
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by modality and seconds. ``cached_tokens`` of the prompt were not computed again."""

    text_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        """All tokens of the prompt."""
        return self.text_tokens + self.image_tokens + self.audio_tokens


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a slow thing is. ``phase`` is a word for people; ``done`` of ``total`` units (0: unknown)."""

    phase: str
    done: int = 0
    total: int = 0


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class TokenChance:
    """One token of the answer, its log probability before any filter, and the likeliest tokens in its place.

    ``data``: the bytes it stands for; ``text`` shows bytes that are no whole character as U+FFFD.
    """

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a transcript: seconds from the beginning of the clip, and the words said in it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of an answer. Text and thinking are deltas; ``usage`` and ``finish`` come with the last.

    ``logprobs``: the tokens of the answer's text since the last chunk that had some, where they were asked for; they
    may come before their text, which is held back while it can still become a tag or a stop string.
    ``segment``: a finished piece of a transcript, see :meth:`Engine.transcribe`.
    """

    text: str = ""
    thinking: str = ""
    tool_call: ToolCall | None = None
    progress: Progress | None = None
    finish: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenChance, ...] = ()
    segment: Segment | None = None


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What an engine does now, and what it has done since it was loaded.

    ``cache_bytes`` of ``cache_limit`` are reserved for keys and values of running and kept conversations.
    ``cache_hits`` requests found a part of their prompt there: ``cached_tokens`` in all. ``tokens_per_second`` were
    written over the last seconds, by all answers together. Of ``drafted_tokens``, guessed and checked in one pass,
    ``accepted_tokens`` were right. ``digest`` names the weights, ``quantization`` their form;
    ``weight_bytes`` is what they take. ``context_length`` is how many tokens a prompt and its answer may have together.
    """

    active: int = 0
    waiting: int = 0
    requests: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_second: float = 0.0
    cache_bytes: int = 0
    cache_limit: int = 0
    cache_hits: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    digest: str = ""
    quantization: str = ""
    weight_bytes: int = 0
    context_length: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What users of a model must know; read from ``card.json`` beside the weights.

    ``notice`` is one honest line shown with answers ("" for none). ``prompts`` maps a slash command
    ("explain", "transcribe") to the words this model was trained on. ``table_form`` names how a data frame
    is written for it: "digest" (ours, for large models) or "columns" (one line a column, demo model).
    ``instruct`` False: a base model that continues text and knows no turns. ``turns`` False: it was trained on single
    questions, so earlier turns are not sent to it. ``extras`` False: it knows only the words it was trained on, so
    nothing is added to a question: no axis texts beside a plot, no words about the form of the answer.
    ``revision`` changes when a file of the model does; it is made when the card is read.
    """

    name: str
    title: str = ""
    notice: str = ""
    modalities: tuple[Modality, ...] = ("text",)
    instruct: bool = True
    turns: bool = True
    extras: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    table_form: Literal["digest", "columns"] = "digest"
    revision: str = ""


class Engine(Protocol):
    """Something that answers requests. ``engine.GemmaEngine`` is the real one, ``echo.EchoEngine`` the fake."""

    card: ModelCard

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """Yield the answer piece by piece; the last chunk has ``finish`` and ``usage``.

        Setting ``cancel`` or closing the iterator ends the stream within one step, with finish "cancelled".
        May be called from many threads; the streams run side by side.
        Raises a :class:`~jupyter_gemma.errors.GemmaError` for a request that cannot be answered.
        """
        ...

    def transcribe(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """Write down what is said in the one clip of ``request``, however long; its text, if any, is context.

        Yields chunks with progress or a :class:`Segment`; the last one is as in :meth:`stream`. Ends, raises and may
        be called as :meth:`stream`.
        """
        ...

    def render(self, request: Request) -> str:
        """The exact text of the prompt, a placeholder for each picture and clip."""
        ...

    def count(self, request: Request) -> Usage:
        """The tokens of the prompt by modality. Raises what :meth:`stream` would raise for its parts."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text`` alone."""
        ...

    def status(self) -> EngineStatus:
        """What the engine does now; cheap, from any thread."""
        ...

    def close(self) -> None:
        """Free the weights. Streams still open end as cancelled."""
        ...


class EngineLoader(Protocol):
    """Builds an engine by model name; handed to the server by the command line."""

    def __call__(self, name: str, progress: ProgressCallback) -> Engine:
        """Load the model ``name`` and report progress. Raises :class:`~jupyter_gemma.errors.GemmaError`."""
        ...
