"""A transcript on the wire: the form of ``POST /v1/audio/transcriptions`` written, and its events written and read.

The form and the events are OpenAI's (https://platform.openai.com/docs/api-reference/audio/createTranscription) with
these additions: ``start`` and ``end`` (seconds) beside each ``delta``, and progress in comments.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jupyter_gemma.errors import GemmaError, RequestError, from_wire
from jupyter_gemma.types import AudioPart, Chunk, Request, Segment, TextPart, Usage
from jupyter_gemma.wire.answer import event, progress_comment, read_line

DELTA, DONE_EVENT = "transcript.text.delta", "transcript.text.done"


# -- asking ------------------------------------------------------------------------------------------------------


def upload(request: Request) -> tuple[bytes, str]:
    """The form that asks to write down the one clip of ``request``, streamed; and its content type.

    Raises:
        RequestError: there is no clip, or several.
    """
    parts = [part for message in request.messages for part in message.parts]
    clips = [part.data for part in parts if isinstance(part, AudioPart)]
    if len(clips) != 1:
        raise RequestError(f"There are {len(clips)} clips to transcribe.", "Send one.")
    fields = {
        "model": request.model,
        "prompt": " ".join(part.text for part in parts if isinstance(part, TextPart)),
        "temperature": "" if request.sampling.temperature is None else str(request.sampling.temperature),
        "stream": "true",
    }
    boundary = secrets.token_hex(16)
    pieces = [_field(boundary, f'name="{name}"', value.encode()) for name, value in fields.items() if value]
    pieces.append(_field(boundary, 'name="file"; filename="clip"', clips[0]))
    return b"".join(pieces) + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def _field(boundary: str, name: str, content: bytes) -> bytes:
    return f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + content + b"\r\n"


# -- answering ---------------------------------------------------------------------------------------------------


def transcript_event(chunk: Chunk) -> str:
    """The comments and events of a chunk."""
    text = progress_comment(chunk.progress) if chunk.progress else ""
    if found := chunk.segment:
        text += event({"type": DELTA, "delta": f"{found.text} ", "start": found.start, "end": found.end})
    return text


def transcript_done(segments: Sequence[Segment], usage: Usage | None) -> str:
    """The last event."""
    return event({"type": DONE_EVENT, "text": transcript_text(segments), **transcript_usage(usage)})


def transcript_text(segments: Sequence[Segment]) -> str:
    """The words of all segments."""
    return " ".join(found.text for found in segments if found.text)


def transcript_usage(usage: Usage | None) -> dict[str, Any]:
    """The key ``usage``, as transcripts have it; none without a usage."""
    if usage is None:
        return {}
    details = {"text_tokens": usage.text_tokens, "audio_tokens": usage.audio_tokens}
    counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
    total = usage.prompt_tokens + usage.completion_tokens
    return {"usage": {"type": "tokens", **counts, "total_tokens": total, "input_token_details": details}}


@dataclass
class TranscriptDecoder:
    """Reads one streamed transcript line by line. ``finished``: its last event came."""

    finished: bool = field(default=False, init=False)

    def feed(self, line: str) -> list[Chunk]:
        """The chunks of ``line``.

        Raises:
            GemmaError: the error that the server sends.
            ServerError: the line is no event of a transcript.
        """
        return read_line(line, self._event)

    def _event(self, content: Mapping[str, Any]) -> list[Chunk]:
        if content.get("error"):
            raise from_wire(GemmaError.status, dict(content))
        if content["type"] == DELTA:
            start = float(content.get("start") or 0)
            end = float(content.get("end") or start)
            return [Chunk(segment=Segment(start, end, content["delta"].strip()))]
        if content["type"] != DONE_EVENT:
            return []  # of a later version
        self.finished = True
        return [Chunk(finish="stop", usage=_usage(content.get("usage")))]


def _usage(found: Mapping[str, Any] | None) -> Usage | None:
    if not found or found.get("type") != "tokens":
        return None
    sound = (found.get("input_token_details") or {}).get("audio_tokens") or 0
    return Usage(
        text_tokens=found.get("input_tokens", 0) - sound,
        audio_tokens=sound,
        completion_tokens=found.get("output_tokens", 0),
    )
