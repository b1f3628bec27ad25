"""A question on the wire: the body of ``POST /v1/chat/completions``, read and written.

The body is OpenAI's (https://platform.openai.com/docs/api-reference/chat/create) with these additions: ``top_k``,
``min_p``, ``repetition_penalty``, ``thinking``, ``image_tokens``, ``adapter``, ``regex``, ``choice``, and the part
``{"type": "video", "frames": [{"seconds": 0.5, "image_url": {"url": "data:..."}}]}``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.types import (
    AudioPart,
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
from jupyter_gemma.wire import constraint, media
from jupyter_gemma.wire.fields import NUMBERS, check_names, get, number, of_kind

MAX_BODY_BYTES = 64 * 2**20
MAX_MESSAGES = 2048
MAX_PARTS = 1024
MAX_STOPS = 16
MAX_TOOLS = 256
CLIENT_HEADER = "X-Gemma-Client"

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
OTHERS = (
    "messages",
    "model",
    "stream",
    "stop",
    "thinking",
    "reasoning_effort",
    "tools",
    "tool_choice",
    "logprobs",
    "adapter",
)
# Fields that cannot change the answer of a local server.
IGNORED = (
    *("user", "metadata", "store", "stream_options", "service_tier", "parallel_tool_calls"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction"),
)
# Fields that ask for something this server cannot do, and the values that ask for nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "verbosity": ("medium",),
    "web_search_options": (),
}
# What a completion's body may hold besides ``prompt``; the rest are neutral values.
COMPLETION_KEYS = (
    *("prompt", "model", "stream", "stop", "logprobs", "user", "stream_options", *constraint.KEYS),
    *(key for key in NUMBERS if key not in ("image_tokens", "top_logprobs", "max_completion_tokens")),
)
COMPLETION_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **{key: NEUTRAL[key] for key in ("logit_bias", "frequency_penalty", "presence_penalty")},
    **{"best_of": (1,), "echo": (False,), "suffix": ("",)},
}


# -- reading -----------------------------------------------------------------------------------------------------


def parse_request(body: Mapping[str, Any]) -> Request:
    """The question that a decoded body asks.

    Raises:
        RequestError: a field has the wrong type or size (it is named), or asks to fetch something.
        BadOption: a field is unknown, out of range, or cannot be honoured.
        BadImage, BadAudio: media that are no base64, or empty.
    """
    check_names(body, (*NUMBERS, *OTHERS, *IGNORED, *constraint.KEYS), NEUTRAL)
    messages: list[Any] = get(body, "messages", list)
    _check_counts(messages)
    choices_wanted(body)
    return Request(
        messages=tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        model=get(body, "model", str, default=""),
        sampling=replace(_sampling(body), logprobs=_logprobs(body)),
        thinking=_thinking(body),
        image_tokens=number(body, "image_tokens"),
        tools=_tools(body),
        constraint=constraint.parse_constraint(body),
        adapter=get(body, "adapter", str, default=""),
    )


def parse_completion(body: Mapping[str, Any]) -> Request:
    """The text that a body of ``POST /v1/completions`` wants continued.

    Raises:
        RequestError, BadOption: as :func:`parse_request`.
    """
    check_names(body, COMPLETION_KEYS, COMPLETION_NEUTRAL)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RequestError("prompt must be one text.", "Send one request for each text; token ids are not taken.")
    alternatives: int | None = get(body, "logprobs", int, default=None)
    if alternatives is not None and not 0 <= alternatives <= 20:
        raise BadOption(f"logprobs is {alternatives}.", "It must be from 0 to 20.")
    choices_wanted(body)
    return Request(
        messages=(Message("user", (TextPart(prompt),)),),
        model=get(body, "model", str, default=""),
        sampling=replace(_sampling(body), logprobs=alternatives),
        constraint=constraint.parse_constraint(body),
    )


def choices_wanted(body: Mapping[str, Any]) -> int:
    """The option ``n``: how many answers.

    Raises:
        RequestError, BadOption: as :func:`parse_request`.
    """
    return int(number(body, "n", default=1))


def as_choice(request: Request, index: int) -> Request:
    """``request`` for choice ``index``: a seed makes all of them repeatable, and different."""
    seed = request.sampling.seed
    if seed is None or index == 0:
        return request
    seed = seed - index if seed > 0 else seed + index  # stays in the range of seeds
    return replace(request, sampling=replace(request.sampling, seed=seed))


def _check_counts(messages: Sequence[Any]) -> None:
    if not 1 <= len(messages) <= MAX_MESSAGES:
        raise RequestError(f"messages has {len(messages)} entries.", f"Send 1 to {MAX_MESSAGES}.")
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    frames = [part.get("frames") for part in parts if isinstance(part, dict)]
    count = len(parts) + sum(len(found) for found in frames if isinstance(found, list))
    if count > MAX_PARTS:
        raise RequestError(f"messages has {count} content parts.", f"Send at most {MAX_PARTS}.")


def _sampling(body: Mapping[str, Any]) -> Sampling:
    longest = number(body, "max_completion_tokens")
    return Sampling(
        temperature=number(body, "temperature"),
        top_k=number(body, "top_k"),
        top_p=number(body, "top_p"),
        min_p=number(body, "min_p"),
        repetition_penalty=number(body, "repetition_penalty"),
        seed=number(body, "seed"),
        max_tokens=number(body, "max_tokens") if longest is None else longest,
        stop=_stop(body.get("stop")),
    )


def _logprobs(body: Mapping[str, Any]) -> int | None:
    wanted: bool = get(body, "logprobs", bool, default=False)
    alternatives: int | None = number(body, "top_logprobs")
    if alternatives and not wanted:
        raise BadOption("top_logprobs is set and logprobs is not.", "Set logprobs to true as well.")
    return (alternatives or 0) if wanted else None


def _stop(value: Any) -> tuple[str, ...]:
    stops = [] if value is None else [value] if isinstance(value, str) else of_kind(value, list, "stop")
    for index, stop in enumerate(stops):
        if not of_kind(stop, str, f"stop[{index}]"):
            raise BadOption(f"stop[{index}] is empty.", "Leave it out.")
    if len(stops) > MAX_STOPS:
        raise BadOption(f"stop has {len(stops)} entries.", f"Send at most {MAX_STOPS}.")
    return tuple(stops)


def _thinking(body: Mapping[str, Any]) -> bool:
    effort: str = get(body, "reasoning_effort", str, default="none")
    wanted: bool = get(body, "thinking", bool, default=effort != "none")
    return wanted


def _tools(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools: list[Any] = get(body, "tools", list, default=[])
    if len(tools) > MAX_TOOLS:
        raise BadOption(f"tools has {len(tools)} entries.", f"Send at most {MAX_TOOLS}.")
    for index, tool in enumerate(tools):
        name = f"tools[{index}]"
        if get(of_kind(tool, dict, name), "type", str, name) != "function":
            raise BadOption(f"{name}.type is {tool['type']!r}.", "Only functions can be called.")
        get(get(tool, "function", dict, name), "name", str, f"{name}.function")
    choice = body.get("tool_choice", "auto")
    if choice not in (None, "auto", "none"):
        raise BadOption("tool_choice can only be auto or none: a call cannot be forced.", "Leave it out.")
    return () if choice == "none" else tuple(tools)


def _message(value: Any, where: str) -> Message:
    source: dict[str, Any] = of_kind(value, dict, where)
    role: str = get(source, "role", str, where)
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role[:50]!r}.", f"It must be one of {', '.join(ROLES)}.")
    calls = tuple(
        _tool_call(call, f"{where}.tool_calls[{index}]")
        for index, call in enumerate(get(source, "tool_calls", list, where, default=[]))
    )
    return Message(
        role=ROLES[role],
        parts=_content(source.get("content"), f"{where}.content", optional=bool(calls)),
        tool_calls=calls,
        tool_call_id=get(source, "tool_call_id", str, where, default=""),
        name=get(source, "name", str, where, default=""),
    )


def _tool_call(value: Any, where: str) -> ToolCall:
    source: dict[str, Any] = of_kind(value, dict, where)
    function: dict[str, Any] = get(source, "function", dict, where)
    text: str = get(function, "arguments", str, f"{where}.function", default="{}")
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}.function.arguments is not JSON: {error}.") from error
    return ToolCall(
        name=get(function, "name", str, f"{where}.function"),
        arguments=of_kind(arguments, dict, f"{where}.function.arguments"),
        id=get(source, "id", str, where, default=""),
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
    source: dict[str, Any] = of_kind(value, dict, where)
    kind: str = get(source, "type", str, where)
    if kind == "text":
        return TextPart(get(source, "text", str, where))
    if kind == "image_url":
        return ImagePart(media.picture(source, where))
    if kind == "input_audio":
        return AudioPart(media.clip(source, where))
    if kind == "video":
        frames: list[Any] = get(source, "frames", list, where)
        return VideoPart(tuple(media.frame(frame, f"{where}.frames[{index}]") for index, frame in enumerate(frames)))
    raise RequestError(f"{where}.type is {kind[:50]!r}.", "It must be text, image_url, input_audio or video.")


# -- writing -----------------------------------------------------------------------------------------------------


def request_body(request: Request) -> dict[str, Any]:
    """The body that asks ``request`` and wants a stream; what is None or empty is left out."""
    sampling = request.sampling
    options = {
        **{key: getattr(sampling, key) for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")},
        **{"seed": sampling.seed, "max_tokens": sampling.max_tokens, "stop": list(sampling.stop) or None},
        **{"logprobs": None if sampling.logprobs is None else True, "top_logprobs": sampling.logprobs or None},
        **{"thinking": request.thinking or None, "image_tokens": request.image_tokens},
        **{"tools": [dict(tool) for tool in request.tools] or None, "model": request.model or None},
        **{"adapter": request.adapter or None},
    }
    return {
        "messages": [_message_json(message) for message in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **{key: value for key, value in options.items() if value is not None},
        **constraint.constraint_json(request.constraint),
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
        return media.picture_json(part)
    if isinstance(part, AudioPart):
        return media.clip_json(part)
    frames = [{"seconds": frame.seconds, "image_url": {"url": media.data_uri(frame.data)}} for frame in part.frames]
    return {"type": "video", "frames": frames}
