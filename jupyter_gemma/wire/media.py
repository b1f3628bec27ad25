"""Pictures and clips inside JSON: base64 and data URIs, read and written. Nothing is ever fetched."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from jupyter_gemma.errors import BadAudio, BadImage, RequestError
from jupyter_gemma.types import AudioPart, Frame, ImagePart
from jupyter_gemma.wire.fields import get, of_kind

MAX_MEDIA_CHARACTERS = 48 * 2**20


def picture(source: Mapping[str, Any], where: str) -> bytes:
    """The bytes of ``image_url``, which is an object with a ``url`` or the URL itself.

    Raises:
        RequestError: the URL is no data URI.
        BadImage: it holds no base64, or too much.
    """
    name = f"{where}.image_url"
    link = source.get("image_url")
    url: str = (
        of_kind(link, str, name)
        if isinstance(link, str)
        else get(get(source, "image_url", dict, where), "url", str, name)
    )
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise RequestError(
            f"{name} is no data URI: nothing is fetched.", "Send the picture itself as data:image/png;base64,…"
        )
    return from_base64(data, name, BadImage)


def clip(source: Mapping[str, Any], where: str) -> bytes:
    """The bytes of ``input_audio``.

    Raises:
        BadAudio: it holds no base64, or too much.
    """
    name = f"{where}.input_audio"
    audio: dict[str, Any] = get(source, "input_audio", dict, where)
    return from_base64(get(audio, "data", str, name), f"{name}.data", BadAudio)


def frame(value: Any, where: str) -> Frame:
    """One picture of a video with its time."""
    source: dict[str, Any] = of_kind(value, dict, where)
    return Frame(float(get(source, "seconds", float, where)), picture(source, where))


def from_base64(data: str, where: str, error: type[RequestError]) -> bytes:
    """The bytes of ``data``; the size is checked before anything is decoded.

    Raises:
        error: no base64, none at all, or more than :data:`MAX_MEDIA_CHARACTERS`.
    """
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


def picture_json(part: ImagePart) -> dict[str, Any]:
    """A content part with the picture."""
    return {"type": "image_url", "image_url": {"url": data_uri(part.data)}}


def clip_json(part: AudioPart) -> dict[str, Any]:
    """A content part with the clip."""
    audio = {"data": base64.b64encode(part.data).decode(), "format": _audio_format(part.data)}
    return {"type": "input_audio", "input_audio": audio}


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
