"""How an answer was made, as a record for the notebook file and as the key under which it is kept."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any

from jupyter_gemma.types import AudioPart, ImagePart, Message, ModelCard, Part, Request, TextPart


def key_of(request: Request, card: ModelCard, settings: Mapping[str, Any]) -> str:
    """A digest of everything that decides an answer; who asks does not, nor a seed that was drawn.

    Args:
        request: as it was asked for, its model named.
        card: of that model, whose revision names the state of its files.
        settings: how the model is run, as its quantisation.
    """
    asked = replace(request, client="")
    return digest([plain(asked), plain(card), dict(settings), _versions()])


def record_of(
    request: Request, card: ModelCard, settings: Mapping[str, Any], key: str, saved: Container[Part]
) -> dict[str, Any]:
    """What stands in the output's metadata: model, sampling with its seed, inputs by digest, versions.

    The inputs among ``saved`` stand there as they are, too.
    """
    sampling = {name: value for name, value in asdict(request.sampling).items() if value not in (None, ())}
    return {
        "model": request.model,
        "revision": card.revision,
        **settings,
        **({"adapter": request.adapter} if request.adapter else {}),
        "sampling": sampling,
        "thinking": request.thinking,
        "inputs": [_input(message, part, saved) for message in request.messages for part in message.parts],
        "versions": _versions(),
        "key": key,
    }


def _input(message: Message, part: Part, saved: Container[Part]) -> dict[str, Any]:
    kinds = {TextPart: "text", ImagePart: "image", AudioPart: "audio"}
    value = _value(part) if part in saved else {}
    return {"role": message.role, "kind": kinds.get(type(part), "video"), "sha256": name_of(part), **value}


def _value(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    if isinstance(part, ImagePart | AudioPart):
        return {"data": base64.b64encode(part.data).decode()}
    return {}  # of a video only its digest


def part_of(saved: Mapping[str, str]) -> Part | None:
    """The part that an input of a record holds; None if it only names it."""
    if "text" in saved:
        return TextPart(saved["text"])
    if "data" not in saved:
        return None
    data = base64.b64decode(saved["data"])
    return ImagePart(data) if saved["kind"] == "image" else AudioPart(data)


def name_of(part: Part) -> str:
    """The digest under which a record names ``part``."""
    return digest(plain(part))


def digest(value: object) -> str:
    """SHA-256 of ``value``, which :func:`plain` made."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(value: Any) -> Any:
    """``value`` as JSON has it; bytes become their digest, dataclasses dicts that name their class."""
    if isinstance(value, bytes):
        return f"sha256:{hashlib.sha256(value).hexdigest()}"
    if is_dataclass(value) and not isinstance(value, type):
        return {"is": type(value).__name__, **dict(_fields(value))}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, plain(getattr(value, field.name))) for field in fields(value))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"jupyter-gemma": version("jupyter-gemma"), "python": sys.version.partition(" ")[0]}
