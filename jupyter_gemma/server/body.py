"""Bodies that arrive: JSON objects and uploaded forms. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any, NoReturn

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.server.guard import check_json
from jupyter_gemma.types import AudioPart, Request, Sampling, TextPart
from jupyter_gemma.types import Message as Turn

MAX_FIELDS = 64
FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
FORM_KEYS = (
    "file",
    "model",
    "language",
    "prompt",
    "response_format",
    "temperature",
    "stream",
    "timestamp_granularities",
)


def decode_body(raw: bytes) -> dict[str, Any]:
    """The JSON object that ``raw`` holds; an empty body is an empty object.

    Raises:
        RequestError: it is no JSON object, too deep or too large (see :func:`check_json`), or holds NaN, Infinity or
            half a surrogate pair.
    """
    check_json(raw)
    try:
        body = json.loads(raw or b"{}", parse_constant=_refuse_constant)
        if rb"\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()
    except RecursionError as error:
        raise RequestError("The body nests too deep.", "Send a flatter object.") from error
    except UnicodeEncodeError as error:
        raise RequestError("The body has half a surrogate pair.", "Send characters whole, best in UTF-8.") from error
    except ValueError as error:
        raise RequestError(f"The body is not JSON: {error}.", "Send a JSON object in UTF-8.") from error
    if not isinstance(body, dict):
        raise RequestError(f"The body is a JSON {type(body).__name__}.", "Send a JSON object.")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def wants_stream(body: Mapping[str, Any]) -> bool:
    """The option ``stream``.

    Raises:
        RequestError: it is neither true nor false.
    """
    stream = body.get("stream") or False
    if not isinstance(stream, bool):
        raise RequestError("stream must be true or false.")
    return stream


def include_usage(body: Mapping[str, Any]) -> bool:
    """Whether ``stream_options`` ask for an event with the usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


# -- forms -------------------------------------------------------------------------------------------------------


def decode_form(raw: bytes, content_type: str) -> dict[str, bytes]:
    """The fields of a ``multipart/form-data`` body (RFC 7578) by name; of a list the last entry.

    Names of files are not looked at: nothing that is sent here is ever written under a name of its own.

    Raises:
        RequestError: it is no such body, is cut short, or has more than :data:`MAX_FIELDS` fields.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary("")
    if header.get_content_type() != "multipart/form-data" or not boundary:
        raise RequestError("The body is no form.", "Send multipart/form-data with the field file.")
    pieces = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("latin-1", "replace"), MAX_FIELDS + 1)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise RequestError("The form is cut short, or has too many fields.", f"Send at most {MAX_FIELDS} fields.")
    return dict(_field(piece) for piece in pieces[1:-1])


def _field(piece: bytes) -> tuple[str, bytes]:
    head, separator, content = piece.partition(b"\r\n\r\n")
    name = re.search(rb'\bname="([^"]*)"', head)
    if not separator or name is None:
        raise RequestError("A field of the form has no name.", 'Send Content-Disposition: form-data; name="file".')
    return name[1].decode("utf-8", "replace").removesuffix("[]"), content


@dataclass(frozen=True, slots=True)
class TranscriptionOrder:
    """What ``POST /v1/audio/transcriptions`` asks for, in which of :data:`FORMATS`."""

    request: Request
    form: str = "json"
    stream: bool = False


def parse_transcription(fields: Mapping[str, bytes]) -> TranscriptionOrder:
    """The order in a form's fields. ``language`` is left to the model to hear.

    Raises:
        RequestError: no file, or a field that is no text.
        BadOption: an unknown field, or a value that is none.
    """
    for key in fields:
        if key not in FORM_KEYS:
            raise BadOption(f"There is no field {key[:50]!r}.", f"There are {', '.join(FORM_KEYS)}.")
    if not fields.get("file"):
        raise RequestError("The form has no file, or an empty one.", "Send the clip in the field file.")
    form = _one_of(fields, "response_format", FORMATS)
    _one_of(fields, "timestamp_granularities", ("segment",))
    stream = _one_of(fields, "stream", ("false", "true")) == "true"
    prompt = _text(fields, "prompt")
    parts = (AudioPart(fields["file"]), *((TextPart(prompt),) if prompt else ()))
    return TranscriptionOrder(
        Request((Turn("user", parts),), model=_text(fields, "model"), sampling=Sampling(temperature=_heat(fields))),
        form,
        stream,
    )


def _text(fields: Mapping[str, bytes], key: str) -> str:
    try:
        return fields.get(key, b"").decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{key} is no text in UTF-8.") from error


def _one_of(fields: Mapping[str, bytes], key: str, values: tuple[str, ...]) -> str:
    value = _text(fields, key) or values[0]
    if value not in values:
        raise BadOption(f"{key} is {value[:50]!r}.", f"It must be one of {', '.join(values)}.")
    return value


def _heat(fields: Mapping[str, bytes]) -> float:
    text = _text(fields, "temperature") or "0"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise BadOption(f"temperature is {text[:50]!r}.", "It must be from 0 to 2.")
    return value
