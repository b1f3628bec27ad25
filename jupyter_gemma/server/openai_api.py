"""Answers that leave: whole and streamed completions, transcripts, model lists, in OpenAI's form. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from jupyter_gemma.types import Chunk, FinishReason, ModelCard, Segment, TokenChance, Usage
from jupyter_gemma.wire.answer import AnswerEncoder, Head, card_json, event, logprobs_json, progress_comment, usage_json
from jupyter_gemma.wire.request import tool_call_json
from jupyter_gemma.wire.transcript import transcript_text, transcript_usage


def completion(head: Head, answers: Sequence[Iterable[Chunk]]) -> dict[str, Any]:
    """Whole answers as a ``chat.completion``, one choice each."""
    return _whole(head, "chat.completion", answers, _message)


def text_completion(head: Head, answers: Sequence[Iterable[Chunk]]) -> dict[str, Any]:
    """Whole continuations as a ``text_completion``, one choice each."""
    return _whole(head, "text_completion", answers, _continuation)


def _whole(
    head: Head, kind: str, answers: Sequence[Iterable[Chunk]], choice: Callable[[list[Chunk]], dict[str, Any]]
) -> dict[str, Any]:
    chunks = [list(answer) for answer in answers]
    choices = [
        {"index": index, **choice(found), "finish_reason": finish_of(found)} for index, found in enumerate(chunks)
    ]
    usage = total_usage(chunk.usage for found in chunks for chunk in found if chunk.usage)
    return {**asdict(head), "object": kind, "choices": choices, **(usage_json(usage) if usage else {})}


def _message(chunks: list[Chunk]) -> dict[str, Any]:
    calls = [tool_call_json(chunk.tool_call) for chunk in chunks if chunk.tool_call]
    thinking = "".join(chunk.thinking for chunk in chunks)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(chunk.text for chunk in chunks),
        **({"reasoning_content": thinking} if thinking else {}),
        **({"tool_calls": calls} if calls else {}),
    }
    chances = [chance for chunk in chunks for chance in chunk.logprobs]
    return {"message": message, **({"logprobs": logprobs_json(chances)} if chances else {})}


def _continuation(chunks: list[Chunk]) -> dict[str, Any]:
    chances = [chance for chunk in chunks for chance in chunk.logprobs]
    return {"text": "".join(chunk.text for chunk in chunks), "logprobs": _old_logprobs(chances)}


def _old_logprobs(chances: Sequence[TokenChance]) -> dict[str, Any] | None:
    """The form that completions have had before chats; of two tokens with the same text the likelier one counts."""
    if not chances:
        return None
    return {
        "tokens": [chance.text for chance in chances],
        "token_logprobs": [chance.logprob for chance in chances],
        "top_logprobs": [{top.text: top.logprob for top in reversed(chance.top)} for chance in chances],
    }


def finish_of(chunks: Sequence[Chunk]) -> FinishReason:
    """Why an answer ended."""
    return next((chunk.finish for chunk in reversed(chunks) if chunk.finish), "cancelled")


def total_usage(usages: Iterable[Usage]) -> Usage | None:
    """The usage of several answers to one prompt, which counts once; they were computed side by side."""
    found = list(usages)
    if not found:
        return None
    return replace(
        found[0],
        completion_tokens=sum(usage.completion_tokens for usage in found),
        prefill_seconds=max(usage.prefill_seconds for usage in found),
        decode_seconds=max(usage.decode_seconds for usage in found),
    )


@dataclass
class TextEncoder(AnswerEncoder):
    """Writes a streamed continuation, as :class:`AnswerEncoder` writes an answer."""

    def encode(self, chunk: Chunk) -> str:
        """The comments and events of ``chunk``."""
        text = progress_comment(chunk.progress) if chunk.progress else ""
        if chunk.text or chunk.finish or chunk.logprobs:
            choice = {"index": self.index, "text": chunk.text, "logprobs": _old_logprobs(chunk.logprobs)}
            text += event(self._object([{**choice, "finish_reason": chunk.finish}]))
        return text

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**asdict(self.head), "object": "text_completion", "choices": choices}


def model_list(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """The answer to ``GET /v1/models``."""
    return {"object": "list", "data": [card_json(card) for card in cards]}


# -- transcripts -------------------------------------------------------------------------------------------------


def transcript(segments: Sequence[Segment], form: str, usage: Usage | None) -> dict[str, Any] | str:
    """A whole transcript in one of the formats of :mod:`jupyter_gemma.server.body`: an object, or text."""
    if form == "srt":
        return "".join(_caption(number, found, ",") for number, found in enumerate(segments, start=1))
    if form == "vtt":
        return "WEBVTT\n\n" + "".join(_caption(None, found, ".") for found in segments)
    text = transcript_text(segments)
    if form == "text":
        return text + "\n"
    if form == "json":
        return {"text": text, **transcript_usage(usage)}
    duration = segments[-1].end if segments else 0.0
    listed = [{"id": number, **asdict(found)} for number, found in enumerate(segments)]
    return {"task": "transcribe", "language": "", "duration": duration, "text": text, "segments": listed}


def _caption(number: int | None, found: Segment, point: str) -> str:
    """One caption. An empty line would end it early, and an arrow in it would look like a time."""
    lines = [] if number is None else [str(number)]
    words = " ".join(found.text.split()).replace("-->", "→")
    lines += [f"{_clock(found.start, point)} --> {_clock(found.end, point)}", words]
    return "\n".join(lines) + "\n\n"


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


# -- our own routes ----------------------------------------------------------------------------------------------


def rendered(text: str, usage: Usage) -> dict[str, Any]:
    """The answer to ``POST /gemma/render``: the exact prompt, and its tokens by modality."""
    counts = {key: getattr(usage, key) for key in ("prompt_tokens", "text_tokens", "image_tokens", "audio_tokens")}
    return {"prompt": text, **counts}


def metrics(status: Mapping[str, Any]) -> str:
    """A status in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    engine: Mapping[str, Any] = status.get("engine") or {}
    gauges = {key: engine.get(key, 0) for key in ("active", "tokens_per_second", "cache_bytes", "cache_limit")}
    gauges |= {"queue": status["queue"], "memory_bytes": status["memory_bytes"], "weight_bytes": 0}
    gauges["weight_bytes"] = engine.get("weight_bytes", 0)
    gauges["model_loaded"] = int(bool(engine))
    counters = {key: engine.get(key, 0) for key in ("requests", "steps", "cache_hits")}
    counters |= {key: engine.get(key, 0) for key in ("prompt_tokens", "cached_tokens", "completion_tokens")}
    lines = [line for name, value in gauges.items() for line in _metric(name, "gauge", value)]
    lines += [line for name, value in counters.items() for line in _metric(f"{name}_total", "counter", value)]
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, value: float) -> list[str]:
    return [f"# TYPE jupyter_gemma_{name} {kind}", f"jupyter_gemma_{name} {value}"]
