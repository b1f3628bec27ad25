"""The OpenAI API around the wire form: raw bodies in, whole completions and model lists out. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from jupyter_gemma.errors import RequestError
from jupyter_gemma.types import Chunk, ModelCard
from jupyter_gemma.wire.answer import Head, card_json, usage_json
from jupyter_gemma.wire.request import tool_call_json

MAX_DEPTH = 64


def decode_body(raw: bytes) -> dict[str, Any]:
    """The JSON object that ``raw`` holds; an empty body is an empty object.

    Raises:
        RequestError: it is no JSON object, nests deeper than :data:`MAX_DEPTH`, or holds NaN or Infinity.
    """
    try:
        body = json.loads(raw or b"{}", parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _too_deep() from error
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.", "Send a JSON object in UTF-8.") from error
    if not isinstance(body, dict):
        raise RequestError(f"The body is a JSON {type(body).__name__}.", "Send a JSON object.")
    _check_depth(body)
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        children = [iter(item.values() if isinstance(item, dict) else item) for item in level]
        level = [child for items in children for child in items if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> RequestError:
    return RequestError(f"The body nests deeper than {MAX_DEPTH} levels.", "Send a flatter object.")


def include_usage(body: dict[str, Any]) -> bool:
    """Whether ``stream_options`` ask for an event with the usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def wants_stream(body: dict[str, Any]) -> bool:
    """The option ``stream``.

    Raises:
        RequestError: it is neither true nor false.
    """
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise RequestError("stream must be true or false.")
    return stream


def completion(head: Head, chunks: Iterable[Chunk]) -> dict[str, Any]:
    """A whole answer as a ``chat.completion``."""
    chunks = list(chunks)
    calls = [tool_call_json(chunk.tool_call) for chunk in chunks if chunk.tool_call]
    thinking = "".join(chunk.thinking for chunk in chunks)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(chunk.text for chunk in chunks),
        **({"reasoning_content": thinking} if thinking else {}),
        **({"tool_calls": calls} if calls else {}),
    }
    finish = next((chunk.finish for chunk in reversed(chunks) if chunk.finish), "cancelled")
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    return {
        **asdict(head),
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        **(usage_json(usage) if usage else {}),
    }


def model_list(cards: Sequence[ModelCard]) -> dict[str, Any]:
    """The answer to ``GET /v1/models``."""
    return {"object": "list", "data": [card_json(card) for card in cards]}
