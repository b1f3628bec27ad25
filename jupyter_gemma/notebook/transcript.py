"""Transcripts: what is wanted of one, and segments with their times written as text, subtitles or rows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from jupyter_gemma.errors import BadOption
from jupyter_gemma.types import Chunk, Segment

FORMS = ("", "srt", "vtt", "segments")
FLAGS = ("--srt", "--vtt", "--segments", "--language", "--translate")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a transcript should be: "" (its text), "srt", "vtt" or "segments"; what is spoken, what to translate to."""

    form: str = ""
    language: str = ""
    translate: str = ""

    def __post_init__(self) -> None:
        """Check the form.

        Raises:
            BadOption: there is no such form.
        """
        if self.form not in FORMS:
            raise BadOption(f"form cannot be {self.form!r}.", "It must be srt, vtt, segments, or empty for text.")


def parse(argument: str) -> tuple[str, Wanted]:
    """Split ``clip --srt --language French`` into the expression of the clip and what is wanted.

    Raises:
        BadOption: an unknown option, or one without its value.
    """
    at = argument.find("--")
    if at < 0:
        return argument, Wanted()
    wanted, words = Wanted(), iter(shlex.split(argument[at:]))
    for word in words:
        if word not in FLAGS:
            raise BadOption(f"/transcribe has no option {word}.", f"There are {', '.join(FLAGS)}, after the clip.")
        name = word.removeprefix("--")
        if name in ("language", "translate"):
            value = next(words, "")
            if not value or value.startswith("--"):
                raise BadOption(f"{word} needs a language.", f"Write {word} French.")
            wanted = replace(wanted, **{name: value})
        else:
            wanted = replace(wanted, form=name)
    return argument[:at].strip(), wanted


def context_words(wanted: Wanted) -> str:
    """What the model is told about the clip; "" for nothing."""
    spoken = f"The language is {wanted.language}. " if wanted.language else ""
    return spoken + (f"Translate it to {wanted.translate}." if wanted.translate else "")


def spoken(chunks: Iterable[Chunk], segments: list[Segment]) -> Iterator[Chunk]:
    """The chunks, with each finished segment as text to be seen meanwhile; it is also put into ``segments``."""
    for chunk in chunks:
        if chunk.segment is not None:
            segments.append(chunk.segment)
            chunk = replace(chunk, text=f"{chunk.segment.text}\n")
        yield chunk


def format_of(form: str) -> str:
    """The format of the answer that :func:`write` makes."""
    return {"srt": "text", "vtt": "text", "segments": "table"}.get(form, "markdown")


def write(form: str, segments: Sequence[Segment]) -> str:
    """Segments as subtitles ("srt", "vtt"), as JSON rows ("segments"), or as text ("")."""
    if form == "segments":
        return json.dumps([asdict(segment) for segment in segments], ensure_ascii=False)
    if form == "srt":
        blocks = [f"{at}\n{_span(each, ',')}\n{each.text}\n" for at, each in enumerate(segments, start=1)]
        return "\n".join(blocks)
    if form == "vtt":
        return "\n".join(["WEBVTT\n", *(f"{_span(each, '.')}\n{each.text}\n" for each in segments)])
    return " ".join(segment.text for segment in segments)


def _span(segment: Segment, mark: str) -> str:
    return f"{_clock(segment.start, mark)} --> {_clock(segment.end, mark)}"


def _clock(seconds: float, mark: str) -> str:
    """ "00:01:02,500", as SubRip and WebVTT write times."""
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"
