"""A question on the wire: the body of ``POST /v1/chat/completions``, read and written.

The body is OpenAI's (https://platform.openai.com/docs/api-reference/chat/create) with these additions: ``top_k``,
``min_p``, ``repetition_penalty``, ``thinking``, ``image_tokens``, and the content part
``{"type": "video", "frames": [{"seconds": 0.5, "image_url": {"url": "data:..."}}]}``.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jupyter_gemma.errors import BadAudio, BadImage, BadOption, RequestError
from jupyter_gemma.types import (
    AudioPart,
    Frame,
    ImagePart,
    Message,
    Part,
    Request,
    Role,
    Sampling,
    TextPart,
    ToolCall,
    VideoPart,
)

MAX_BODY_BYTES = 64 * 2**20
MAX_MEDIA_CHARACTERS = 48 * 2**20
MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_STOPS = 16

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# Option -> kind, lowest and highest value.
NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "top_k": (int, 0, 2**31),
    "repetition_penalty": (float, 0.01, 100),
    "seed": (int, -(2**63), 2**64 - 1),
    "max_tokens": (int, 1, 2**31),
    "max_completion_tokens": (int, 1, 2**31),
    "image_tokens": (int, 1, 2**16),
}
OTHERS = ("messages", "model", "stream", "stop", "thinking", "reasoning_effort", "tools", "tool_choice")
# Fields that cannot change the answer of a local server.
IGNORED = (
    *("user", "metadata", "store", "stream_options", "service_tier", "parallel_tool_calls"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction"),
)
# Fields that ask for something this server cannot do, and the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
KIND_NAMES: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


# -- reading -----------------------------------------------------------------------------------------------------


def parse_request(body: Mapping[str, Any]) -> Request:
    """The question that a decoded body asks.

    Raises:
        RequestError: a field has the wrong type or size (it is named), or asks to fetch something.
        BadOption: a field is unknown, out of range, or cannot be honoured.
        BadImage, BadAudio: media that are no base64, or empty.
    """
    _check_fields(body)
    messages: list[Any] = _get(body, "messages", list)
    _check_counts(messages)
    return Request(
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        model=_get(body, "model", str, default=""),
        sampling=_sampling(body),
        thinking=_thinking(body),
        image_tokens=_number(body, "image_tokens"),
        tools=_tools(body),
    )


def _check_fields(body: Mapping[str, Any]) -> None:
    known = {*NUMBERS, *OTHERS, *IGNORED}
    for key, value in body.items():
        if value is None or key in known or value in NEUTRAL.get(key, ()):
            continue
        if key in NEUTRAL:
            raise BadOption(f"The option {key} cannot be set to {str(value)[:50]!r} here.", "Leave it out.")
        near = difflib.get_close_matches(key, known, n=1)
        raise BadOption(f"There is no option {key!r}.", f"Did you mean {near[0]}?" if near else "Leave it out.")


def _check_counts(messages: Sequence[Any]) -> None:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages has {len(messages)} entries.", f"Send 1 to {MAX_MESSAGES}.")
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    frames = [part.get("frames") for part in parts if isinstance(part, dict)]
    count = len(parts) + sum(len(found) for found in frames if isinstance(found, list))
    if count > MAX_PARTS:
        raise RequestError(f"messages has {count} content parts.", f"Send at most {MAX_PARTS}.")


def _get(source: Mapping[str, Any], key: str, kind: type, where: str = "", default: Any = ...) -> Any:
    """``source[key]``, of type ``kind``; absent or null gives ``default``, and without one an error."""
    name = f"{where}.{key}" if where else key
    value = source.get(key)
    if value is None:
        if default is ...:
            raise RequestError(f"{name} is missing.", f"It must be {KIND_NAMES[kind]}.")
        return default
    return _of_kind(value, kind, name)


def _of_kind(value: Any, kind: type, name: str) -> Any:
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise RequestError(f"{name} must be {KIND_NAMES[kind]}, not {type(value).__name__}.")
    return value


def _number(body: Mapping[str, Any], key: str) -> Any:
    kind, low, high = NUMBERS[key]
    value = _get(body, key, kind, default=None)
    if value is not None and not low <= value <= high:
        raise BadOption(f"{key} is {value}.", f"It must be from {low:g} to {high:g}.")
    return value


def _sampling(body: Mapping[str, Any]) -> Sampling:
    longest = _number(body, "max_completion_tokens")
    return Sampling(
        temperature=_number(body, "temperature"),
        top_k=_number(body, "top_k"),
        top_p=_number(body, "top_p"),
        min_p=_number(body, "min_p"),
        repetition_penalty=_number(body, "repetition_penalty"),
        seed=_number(body, "seed"),
        max_tokens=_number(body, "max_tokens") if longest is None else longest,
        stop=_stop(body.get("stop")),
    )


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else _of_kind(value, list, "stop")
    for index, stop in enumerate(stops):
        if not _of_kind(stop, str, f"stop[{index}]"):
            raise BadOption(f"stop[{index}] is empty.", "Leave it out.")
    if len(stops) > MAX_STOPS:
        raise BadOption(f"stop has {len(stops)} entries.", f"Send at most {MAX_STOPS}.")
    return tuple(stops)


def _thinking(body: Mapping[str, Any]) -> bool:
    effort: str = _get(body, "reasoning_effort", str, default="none")
    wanted: bool = _get(body, "thinking", bool, default=effort != "none")
    return wanted


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools: list[Any] = _get(body, "tools", list, default=[])
    for index, tool in enumerate(tools):
        name = f"tools[{index}]"
        if _get(_of_kind(tool, dict, name), "type", str, name) != "function":
            raise BadOption(f"{name}.type is {tool['type']!r}.", "Only functions can be called.")
        _get(_get(tool, "function", dict, name), "name", str, f"{name}.function")
    choice = body.get("tool_choice", "auto")
    if choice not in (None, "auto", "none"):
        raise BadOption("tool_choice can only be auto or none: a call cannot be forced.", "Leave it out.")
    return () if choice == "none" else tuple(tools)


def _message(value: Any, where: str) -> Message:
    source: dict[str, Any] = _of_kind(value, dict, where)
    role: str = _get(source, "role", str, where)
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role[:50]!r}.", f"It must be one of {', '.join(ROLES)}.")
    calls = tuple(
        _tool_call(call, f"{where}.tool_calls[{index}]")
        for index, call in enumerate(_get(source, "tool_calls", list, where, default=[]))
    )
    return Message(
        role=ROLES[role],
        parts=_content(source.get("content"), f"{where}.content", optional=bool(calls)),
        tool_calls=calls,
        tool_call_id=_get(source, "tool_call_id", str, where, default=""),
        name=_get(source, "name", str, where, default=""),
    )


def _tool_call(value: Any, where: str) -> ToolCall:
    source: dict[str, Any] = _of_kind(value, dict, where)
    function: dict[str, Any] = _get(source, "function", dict, where)
    text: str = _get(function, "arguments", str, f"{where}.function", default="{}")
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}.function.arguments is not JSON: {error}.") from error
    return ToolCall(
        name=_get(function, "name", str, f"{where}.function"),
        arguments=_of_kind(arguments, dict, f"{where}.function.arguments"),
        id=_get(source, "id", str, where, default=""),
    )


def _content(value: Any, where: str, optional: bool) -> tuple[Part, ...]:
    if value is None and optional:
        return ()
    if isinstance(value, str):
        return (TextPart(value),) if value else ()
    if not isinstance(value, list):
        raise RequestError(f"{where} must be text or a list of parts, not {type(value).__name__}.")
    return tuple(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, where: str) -> Part:
    source: dict[str, Any] = _of_kind(value, dict, where)
    kind: str = _get(source, "type", str, where)
    if kind == "text":
        return TextPart(_get(source, "text", str, where))
    if kind == "image_url":
        return ImagePart(_picture(source, where))
    if kind == "input_audio":
        audio: dict[str, Any] = _get(source, "input_audio", dict, where)
        return AudioPart(
            _base64(_get(audio, "data", str, f"{where}.input_audio"), f"{where}.input_audio.data", BadAudio)
        )
    if kind == "video":
        frames: list[Any] = _get(source, "frames", list, where)
        return VideoPart(tuple(_frame(frame, f"{where}.frames[{index}]") for index, frame in enumerate(frames)))
    raise RequestError(f"{where}.type is {kind[:50]!r}.", "It must be text, image_url, input_audio or video.")


def _frame(value: Any, where: str) -> Frame:
    source: dict[str, Any] = _of_kind(value, dict, where)
    return Frame(float(_get(source, "seconds", float, where)), _picture(source, where))


def _picture(source: Mapping[str, Any], where: str) -> bytes:
    """The bytes of ``image_url``, which is an object with a ``url`` or the URL itself."""
    name = f"{where}.image_url"
    link = source.get("image_url")
    url: str = (
        _of_kind(link, str, name)
        if isinstance(link, str)
        else _get(_get(source, "image_url", dict, where), "url", str, name)
    )
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise RequestError(
            f"{name} is no data URI: nothing is fetched.", "Send the picture itself as data:image/png;base64,…"
        )
    return _base64(data, name, BadImage)


def _base64(data: str, where: str, error: type[RequestError]) -> bytes:
    if len(data) > MAX_MEDIA_CHARACTERS:
        raise error(
            f"{where} has {len(data)} characters of base64.", f"Send at most {MAX_MEDIA_CHARACTERS}: make it smaller."
        )
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as reason:
        raise error(
            f"{where} is no base64: {reason}.", "Send the file's bytes in base64, without line breaks."
        ) from reason
    if not content:
        raise error(f"{where} is empty.", "Send the file's bytes in base64.")
    return content


# -- writing -----------------------------------------------------------------------------------------------------


def request_body(request: Request) -> dict[str, Any]:
    """The body that asks ``request`` and wants a stream; what is None or empty is left out."""
    sampling = request.sampling
    options = {
        **{key: getattr(sampling, key) for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")},
        **{"seed": sampling.seed, "max_tokens": sampling.max_tokens, "stop": list(sampling.stop) or None},
        **{"thinking": request.thinking or None, "image_tokens": request.image_tokens},
        **{"tools": [dict(tool) for tool in request.tools] or None, "model": request.model or None},
    }
    return {
        "messages": [_message_json(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{key: value for key, value in options.items() if value is not None},
    }


def _message_json(message: Message) -> dict[str, Any]:
    plain = all(isinstance(part, TextPart) for part in message.parts)
    result: dict[str, Any] = {
        "role": message.role,
        "content": message.text if plain else [_part_json(part) for part in message.parts],
    }
    if message.tool_calls:
        result["tool_calls"] = [tool_call_json(call) for call in message.tool_calls]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.name:
        result["name"] = message.name
    return result


def tool_call_json(call: ToolCall) -> dict[str, Any]:
    """OpenAI's form of a call; the arguments are JSON in a string."""
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)}
    return {"id": call.id, "type": "function", "function": function}


def _part_json(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": data_uri(part.data)}}
    if isinstance(part, AudioPart):
        audio = {"data": base64.b64encode(part.data).decode(), "format": _audio_format(part.data)}
        return {"type": "input_audio", "input_audio": audio}
    frames = [{"seconds": frame.seconds, "image_url": {"url": data_uri(frame.data)}} for frame in part.frames]
    return {"type": "video", "frames": frames}


def data_uri(picture: bytes) -> str:
    """``picture`` as a data URI, with the media type that its first bytes tell."""
    kinds = {
        b"\x89PNG": "png",
        b"\xff\xd8": "jpeg",
        b"GIF8": "gif",
        b"RIFF": "webp",
        b"BM": "bmp",
        b"II": "tiff",
        b"MM": "tiff",
    }
    kind = next((kind for magic, kind in kinds.items() if picture.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _audio_format(clip: bytes) -> str:
    kinds = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
    return next((kind for magic, kind in kinds.items() if clip.startswith(magic)), "mp3")
