"""What the OpenAPI document says of bodies and answers, made from the tables by which bodies are read."""

from __future__ import annotations

from typing import Any

from jupyter_gemma.server.body import FORMATS
from jupyter_gemma.wire.fields import NUMBERS
from jupyter_gemma.wire.request import COMPLETION_KEYS, MAX_MESSAGES, MAX_STOPS, ROLES

TEXT = {"type": "string"}
FLAG = {"type": "boolean"}
OBJECT = {"type": "object"}
ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": dict.fromkeys(("message", "type", "code", "fix"), TEXT) | {"param": {"type": "null"}},
            "required": ["message", "code"],
        }
    },
    "required": ["error"],
}


def chat_body() -> dict[str, Any]:
    """What to send to ``/v1/chat/completions`` and ``/gemma/render``."""
    numbers = {key: _number(key) for key in NUMBERS}
    properties = {
        "messages": {"type": "array", "items": _message(), "minItems": 1, "maxItems": MAX_MESSAGES},
        **_common(),
        **numbers,
        "logprobs": FLAG,
        "thinking": FLAG,
        "reasoning_effort": {"type": "string", "enum": ["none", "minimal", "low", "medium", "high"]},
        "tools": {"type": "array", "items": _tool()},
        "tool_choice": {"type": "string", "enum": ["auto", "none"]},
    }
    return _json({"type": "object", "properties": properties, "required": ["messages"], "additionalProperties": False})


def completion_body() -> dict[str, Any]:
    """What to send to ``/v1/completions``."""
    numbers = {key: _number(key) for key in NUMBERS if key in COMPLETION_KEYS}
    logprobs = {"type": "integer", "minimum": 0, "maximum": 20}
    properties = {"prompt": TEXT, **_common(), **numbers, "logprobs": logprobs}
    return _json({"type": "object", "properties": properties, "required": ["prompt"], "additionalProperties": False})


def transcription_body() -> dict[str, Any]:
    """What to send to ``/v1/audio/transcriptions``."""
    properties = {
        "file": {"type": "string", "format": "binary"},
        "model": TEXT,
        "language": TEXT,
        "prompt": TEXT,
        "response_format": {"type": "string", "enum": list(FORMATS)},
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "stream": FLAG,
    }
    schema = {"type": "object", "properties": properties, "required": ["file"], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def small_body(*required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    """A body of a few fields."""
    return _json({"type": "object", "properties": properties, "required": list(required)})


def answers(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """An answer in one of ``kinds`` of content, or the error body."""
    return {
        200: {"description": "The answer.", "content": {kind: {} for kind in kinds or ("application/json",)}},
        "default": {"description": "What is wrong.", "content": {"application/json": {"schema": ERROR}}},
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _number(key: str) -> dict[str, Any]:
    kind, low, high = NUMBERS[key]
    return {"type": "integer" if kind is int else "number", "minimum": low, "maximum": high}


def _common() -> dict[str, Any]:
    """The fields that are no numbers and that chats and completions share."""
    schema = {
        "type": "object",
        "properties": {"name": TEXT, "schema": OBJECT},
        "required": ["schema"],
    }
    kinds = [
        {"type": "object", "properties": {"type": {"const": kind}}, "required": ["type"]}
        for kind in ("text", "json_object")
    ]
    with_schema = {
        "type": "object",
        "properties": {"type": {"const": "json_schema"}, "json_schema": schema},
        "required": ["type", "json_schema"],
    }
    stops = {"type": "array", "items": {**TEXT, "minLength": 1}, "maxItems": MAX_STOPS}
    return {
        "model": TEXT,
        "stream": FLAG,
        "stream_options": {"type": "object", "properties": {"include_usage": FLAG}},
        "stop": {"anyOf": [{**TEXT, "minLength": 1}, stops]},
        "user": TEXT,
        "response_format": {"oneOf": [*kinds, with_schema]},
        "regex": {**TEXT, "minLength": 1},
        "choice": {"type": "array", "items": {**TEXT, "minLength": 1}, "minItems": 1},
    }


def _message() -> dict[str, Any]:
    parts = [
        _part("text", text=TEXT),
        _part("image_url", image_url={"type": "object", "properties": {"url": _data_uri()}, "required": ["url"]}),
        _part("input_audio", input_audio={"type": "object", "properties": {"data": TEXT}, "required": ["data"]}),
    ]
    content = {"anyOf": [TEXT, {"type": "array", "items": {"oneOf": parts}}]}
    properties = {
        "role": {"type": "string", "enum": list(ROLES)},
        "content": content,
        "name": TEXT,
        "tool_call_id": TEXT,
    }
    return {"type": "object", "properties": properties, "required": ["role", "content"]}


def _data_uri() -> dict[str, Any]:
    return {"type": "string", "pattern": "^data:image/[a-z]+;base64,[A-Za-z0-9+/]+=*$"}


def _part(kind: str, **field: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {"type": {"const": kind}, **field}, "required": ["type", *field]}


def _tool() -> dict[str, Any]:
    properties = {"name": {**TEXT, "minLength": 1}, "description": TEXT, "parameters": OBJECT}
    function = {"type": "object", "properties": properties, "required": ["name"]}
    return {"type": "object", "properties": {"type": {"const": "function"}, "function": function}} | {
        "required": ["type", "function"]
    }
