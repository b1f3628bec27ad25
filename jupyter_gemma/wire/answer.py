"""An answer on the wire: :class:`~jupyter_gemma.types.Chunk` to OpenAI's server-sent events and back, and model cards.

A stream is ``chat.completion.chunk`` objects (https://platform.openai.com/docs/api-reference/chat-streaming) with
these additions: ``reasoning_content`` in the delta, ``timings`` beside ``usage``, and progress in comments
``: {"progress": {"phase": "loading", "done": 1, "total": 3}}``, which other clients skip. An error that comes after
the first event is an event ``{"error": {...}}``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, cast, get_args

from jupyter_gemma.errors import GemmaError, ServerError, from_wire
from jupyter_gemma.types import Chunk, FinishReason, ModelCard, Progress, TokenChance, ToolCall, Usage
from jupyter_gemma.wire.request import tool_call_json

DONE = "data: [DONE]\n\n"
KEEP_ALIVE = ": waiting\n\n"


# -- writing -----------------------------------------------------------------------------------------------------


def event(content: Mapping[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def progress_comment(progress: Progress) -> str:
    """Progress as a comment."""
    return f": {json.dumps({'progress': asdict(progress)}, ensure_ascii=False)}\n\n"


@dataclass(frozen=True, slots=True)
class Head:
    """What stands in every object of one answer; ``created`` is Unix seconds."""

    id: str
    model: str
    created: int


@dataclass
class AnswerEncoder:
    """Writes one streamed answer, or one of several side by side, of which it is choice ``index``.

    ``include_usage``: an event with the usage and no choices follows the one with the finish reason, as OpenAI's
    ``stream_options`` ask for.
    """

    head: Head
    include_usage: bool = False
    index: int = 0
    _first: bool = field(default=True, init=False)
    _calls: int = field(default=0, init=False)

    def encode(self, chunk: Chunk) -> str:
        """The comments and events of ``chunk``; "" if it holds nothing."""
        text = progress_comment(chunk.progress) if chunk.progress else ""
        delta = self._delta(chunk)
        if delta or chunk.finish or chunk.logprobs:
            choice = {"index": self.index, "delta": self._opening(delta), "finish_reason": chunk.finish}
            if chunk.logprobs:
                choice["logprobs"] = logprobs_json(chunk.logprobs)
            text += event(self._object([choice]))
        if chunk.usage and self.include_usage:
            text += self.usage_event(chunk.usage)
        return text

    def usage_event(self, usage: Usage) -> str:
        """The event without choices."""
        return event({**self._object([]), **usage_json(usage)})

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**asdict(self.head), "object": "chat.completion.chunk", "choices": choices}

    def _opening(self, delta: dict[str, Any]) -> dict[str, Any]:
        if not self._first:
            return delta
        self._first = False
        return {"role": "assistant", "content": "", **delta}

    def _delta(self, chunk: Chunk) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if chunk.thinking:
            delta["reasoning_content"] = chunk.thinking
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.tool_call:
            delta["tool_calls"] = [{"index": self._calls, **tool_call_json(chunk.tool_call)}]
            self._calls += 1
        return delta


def logprobs_json(chances: Sequence[TokenChance]) -> dict[str, Any]:
    """OpenAI's ``logprobs`` of a choice."""
    return {"content": [{**_chance(found), "top_logprobs": list(map(_chance, found.top))} for found in chances]}


def _chance(found: TokenChance) -> dict[str, Any]:
    return {"token": found.text, "logprob": found.logprob, "bytes": list(found.data)}


def usage_json(usage: Usage) -> dict[str, Any]:
    """The keys ``usage`` (OpenAI's) and ``timings`` (ours, seconds)."""
    details = {key: getattr(usage, key) for key in ("cached_tokens", "audio_tokens", "text_tokens", "image_tokens")}
    counts = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return {
        "usage": {**counts, "total_tokens": sum(counts.values()), "prompt_tokens_details": details},
        "timings": {"prefill_seconds": usage.prefill_seconds, "decode_seconds": usage.decode_seconds},
    }


def card_json(card: ModelCard) -> dict[str, Any]:
    """An entry of ``/v1/models``; ``card`` is ours."""
    return {"id": card.name, "object": "model", "created": 0, "owned_by": "jupyter-gemma", "card": asdict(card)}


# -- reading -----------------------------------------------------------------------------------------------------


@dataclass
class AnswerDecoder:
    """Reads one streamed answer line by line, ours or another server's.

    The chunk with the finish reason is held back for the usage, which comes after it; :meth:`end` gives it.
    ``finished`` says whether the server named a finish reason.
    """

    finished: bool = field(default=False, init=False)
    _finish: FinishReason = field(default="stop", init=False)
    _usage: Usage | None = field(default=None, init=False)
    _call: dict[str, Any] | None = field(default=None, init=False)

    def feed(self, line: str) -> list[Chunk]:
        """The chunks that ``line`` completes.

        Raises:
            GemmaError: the error that the server sends.
            ServerError: the line is no event of a chat completion.
        """
        return read_line(line, self._event)

    def end(self) -> list[Chunk]:
        """The chunks held back."""
        return [*self._flush(), Chunk(finish=self._finish, usage=self._usage)]

    def _event(self, content: dict[str, Any]) -> list[Chunk]:
        if content.get("error"):
            raise from_wire(GemmaError.status, content)
        if content.get("usage"):
            self._usage = usage_from_json(content)
        chunks: list[Chunk] = []
        for choice in (content.get("choices") or [])[:1]:
            chunks += self._delta(choice.get("delta") or {}, _chances(choice.get("logprobs")))
            if reason := choice.get("finish_reason"):
                self.finished = True
                self._finish = reason if reason in get_args(FinishReason) else "stop"
        return chunks

    def _delta(self, delta: dict[str, Any], chances: tuple[TokenChance, ...]) -> list[Chunk]:
        text = delta.get("content") or ""
        thinking = delta.get("reasoning_content") or delta.get("reasoning") or ""
        found = Chunk(text=text, thinking=thinking, logprobs=chances)
        chunks = [found] if found != Chunk() else []
        for piece in delta.get("tool_calls") or []:
            chunks += self._tool_call(piece)
        return chunks

    def _tool_call(self, piece: dict[str, Any]) -> list[Chunk]:
        """Collect the pieces of a call; a piece of the next one completes it."""
        function = piece.get("function") or {}
        if self._call is not None and self._call["index"] == piece.get("index"):
            self._call["arguments"] += function.get("arguments") or ""
            return []
        done = self._flush()
        self._call = {
            "index": piece.get("index"),
            "id": piece.get("id") or "",
            "name": function["name"],
            "arguments": function.get("arguments") or "",
        }
        return done

    def _flush(self) -> list[Chunk]:
        call, self._call = self._call, None
        if call is None:
            return []
        try:
            arguments = json.loads(call["arguments"] or "{}")
        except ValueError as error:
            raise ServerError(f"The server sent a call of {call['name']} whose arguments are not JSON.") from error
        return [Chunk(tool_call=ToolCall(call["name"], arguments, call["id"]))]


def _chances(found: Mapping[str, Any] | None) -> tuple[TokenChance, ...]:
    """The chances in a choice's ``logprobs``, which other servers also send as null or with null inside."""
    return tuple(
        replace(_read_chance(entry), top=tuple(map(_read_chance, entry.get("top_logprobs") or ())))
        for entry in (found or {}).get("content") or ()
    )


def _read_chance(entry: Mapping[str, Any]) -> TokenChance:
    text = entry["token"]
    data = entry.get("bytes")
    return TokenChance(text, text.encode() if data is None else bytes(data), float(entry["logprob"]))


def read_line(line: str, read_event: Callable[[Any], list[Chunk]]) -> list[Chunk]:
    """The chunks of one line of a stream: of a comment with progress, or what ``read_event`` makes of an event.

    Raises:
        ServerError: the event is no JSON, or not what ``read_event`` knows.
    """
    if line.startswith(":"):
        return _read_progress(line[1:])
    text = line.removeprefix("data:").strip()
    if not line.startswith("data:") or text == "[DONE]":
        return []
    try:
        return read_event(json.loads(text))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ServerError(f"The server sent an event that cannot be read: {text[:80]!r}.") from error


def _read_progress(comment: str) -> list[Chunk]:
    """The chunk of a comment with progress; none for a comment of somebody else."""
    try:
        return [Chunk(progress=Progress(**json.loads(comment)["progress"]))]
    except (ValueError, TypeError, KeyError):
        return []


def usage_from_json(content: Mapping[str, Any]) -> Usage:
    """The usage in a completion or its last chunk; what a server does not break down counts as text."""
    usage = content["usage"]
    details = usage.get("prompt_tokens_details") or {}
    image, audio = details.get("image_tokens") or 0, details.get("audio_tokens") or 0
    return Usage(
        text_tokens=usage.get("prompt_tokens", 0) - image - audio,
        image_tokens=image,
        audio_tokens=audio,
        cached_tokens=details.get("cached_tokens") or 0,
        completion_tokens=usage.get("completion_tokens", 0),
        **{key: float(value) for key, value in _timings(content).items()},
    )


def _timings(content: Mapping[str, Any]) -> dict[str, float]:
    timings = content.get("timings") or {}
    return {key: timings[key] for key in ("prefill_seconds", "decode_seconds") if key in timings}


def card_from_json(entry: Mapping[str, Any]) -> ModelCard:
    """The card of an entry of ``/v1/models``. Another server's has none: it may take anything, and will say so."""
    card = entry.get("card")
    if not isinstance(card, dict):
        return ModelCard(name=str(entry.get("id", "")), modalities=("text", "image", "audio"))
    known = {item.name for item in fields(ModelCard)}
    values = {key: value for key, value in card.items() if key in known}
    return ModelCard(**{**values, "modalities": tuple(cast("list[Any]", values.get("modalities", ["text"])))})
