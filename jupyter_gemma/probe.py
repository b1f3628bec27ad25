"""What another OpenAI-compatible server can do, found out by asking it something small and looking at the answer.

Names and versions say little: servers accept fields that they then ignore. So a feature counts as there if it shows: a
picture makes a prompt longer, a form shapes an answer. Pure functions; :mod:`jupyter_gemma.client` sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jupyter_gemma.types import AudioPart, Constraint, ImagePart, Message, Part, Request, Sampling, TextPart, VideoPart
from jupyter_gemma.wire.request import request_body

FEATURES: Mapping[str, str] = {
    "pictures": "takes no pictures",
    "sound": "takes no sound",
    "tools": "offers no tools to its model",
    "thinking": "does not let its model think",
    "json": "cannot keep an answer to JSON",
    "json_schema": "cannot keep an answer to a JSON schema",
    "regex": "cannot keep an answer to a pattern",
    "choice": "cannot keep an answer to a choice",
    "logprobs": "tells no chances of tokens",
    "top_k": "takes no top_k",
    "min_p": "takes no min_p",
    "repetition_penalty": "takes no repetition_penalty",
    "image_tokens": "takes no image_tokens",
}
WORD = "k7"
QUESTION = "Say hello."
SCHEMA = {
    "type": "object",
    "properties": {WORD: {"type": "boolean"}},
    "required": [WORD],
    "additionalProperties": False,
}
CONSTRAINTS: Mapping[str, Constraint] = {
    "json": Constraint("json"),
    "json_schema": Constraint("json_schema", SCHEMA),
    "regex": Constraint("regex", "[0-9]{4}"),
    "choice": Constraint("choice", [WORD]),
}
# A picture of one pixel (PNG), and a tenth of a second of sound (WAV, 8 kHz).
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f"
    "0005fe02fe0def46b80000000049454e44ae426082"
)
CLIP = (
    b"RIFF" + (836).to_bytes(4, "little") + b"WAVEfmt \x10\0\0\0\1\0\1\0@\x1f\0\0@\x1f\0\0\1\0\x08\0"
    b"data" + (800).to_bytes(4, "little") + bytes(100 + index % 50 for index in range(800))
)


@dataclass(frozen=True, slots=True)
class Trial:
    """A request that shows a feature, and one without it to compare with, where one is needed."""

    request: Request
    plain: Request | None = None


def features_of(request: Request) -> list[str]:
    """The features that ``request`` uses, by their names in :data:`FEATURES`."""
    parts = {type(part) for message in request.messages for part in message.parts}
    sampling = request.sampling
    used = {
        "pictures": bool(parts & {ImagePart, VideoPart}),
        "sound": AudioPart in parts,
        "tools": bool(request.tools),
        "thinking": request.thinking,
        "logprobs": sampling.logprobs is not None,
        "image_tokens": request.image_tokens is not None,
        **{key: getattr(sampling, key) is not None for key in ("top_k", "min_p", "repetition_penalty")},
    }
    form = [request.constraint.kind] if request.constraint else []
    return [name for name, there in used.items() if there] + form


def trial_of(feature: str) -> Trial | None:
    """How to try ``feature``; None: only our own server has it."""
    plain = _ask(TextPart(QUESTION), most=1)
    if feature in CONSTRAINTS:
        return Trial(replace(_ask(TextPart(QUESTION), most=32), constraint=CONSTRAINTS[feature]))
    tool = {"type": "function", "function": {"name": WORD, "parameters": {"type": "object", "properties": {}}}}
    trials = {
        "pictures": Trial(_ask(ImagePart(PIXEL), TextPart(QUESTION), most=1), plain),
        "sound": Trial(_ask(AudioPart(CLIP), TextPart(QUESTION), most=1), plain),
        "tools": Trial(replace(plain, tools=(tool,)), plain),
        "thinking": Trial(replace(plain, thinking=True), plain),
        "logprobs": Trial(replace(plain, sampling=Sampling(max_tokens=1, logprobs=1))),
    }
    limits = {
        "top_k": Sampling(top_k=5, max_tokens=1),
        "min_p": Sampling(min_p=0.1, max_tokens=1),
        "repetition_penalty": Sampling(repetition_penalty=1.1, max_tokens=1),
    }
    trials |= {name: Trial(replace(plain, sampling=sampling)) for name, sampling in limits.items()}
    return trials.get(feature)


def _ask(*parts: Part, most: int) -> Request:
    return Request((Message("user", parts),), sampling=Sampling(temperature=0.0, max_tokens=most))


def shows(feature: str, answer: Mapping[str, Any], plain: Mapping[str, Any] | None) -> bool:
    """Whether ``answer``, a whole completion, shows ``feature``; ``plain`` is the answer without it."""
    choice: Mapping[str, Any] = (answer.get("choices") or [{}])[0]
    text = str((choice.get("message") or {}).get("content") or "").strip()
    if plain is not None:
        return _prompt_tokens(answer) > _prompt_tokens(plain)
    if feature == "logprobs":
        return bool((choice.get("logprobs") or {}).get("content"))
    checks = {
        "json": text.startswith("{"),
        "json_schema": re.match(rf'\{{\s*"{WORD}"', text) is not None,
        "regex": re.fullmatch("[0-9]{4}", text) is not None,
        "choice": text == WORD,
    }
    return checks.get(feature, True)


def _prompt_tokens(answer: Mapping[str, Any]) -> int:
    return int((answer.get("usage") or {}).get("prompt_tokens") or 0)


# -- how others spell it -----------------------------------------------------------------------------------------


def foreign_body(request: Request) -> dict[str, Any]:
    """The body that asks another server ``request``.

    A video goes as pictures with their times, thinking as an argument of the chat template, and a pattern or choice
    also in vLLM's spelling (https://docs.vllm.ai/en/latest/features/structured_outputs/).
    """
    body = request_body(replace(request, messages=tuple(map(_without_video, request.messages))))
    if body.pop("thinking", False):
        body["chat_template_kwargs"] = {"enable_thinking": True}
    for kind in ("regex", "choice"):
        if kind in body:
            body["structured_outputs"] = {kind: body[kind]}
    return body


def _without_video(message: Message) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if not isinstance(part, VideoPart):
            parts.append(part)
            continue
        for frame in part.frames:
            parts += [TextPart(f"{int(frame.seconds // 60):02}:{int(frame.seconds % 60):02} "), ImagePart(frame.data)]
    return replace(message, parts=tuple(parts))


def whole(body: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` for an answer in one piece."""
    return {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
