"""``/transcribe`` with options: segments with their times, as subtitles or as a table."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from IPython.core.error import UsageError

from jupyter_gemma.errors import BadAudio
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker, Labelled, limits_for
from jupyter_gemma.notebook.context import item_of
from jupyter_gemma.notebook.display import View, collect, draft_of
from jupyter_gemma.notebook.options import Options
from jupyter_gemma.types import AudioPart, Chunk, Message, Request, Segment, TextPart

FLAGS = ("--srt", "--vtt", "--segments", "--language", "--translate")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a transcript should be: "" (its text), "srt", "vtt" or "segments"; what is spoken, what to translate to."""

    form: str = ""
    language: str = ""
    translate: str = ""


def parse(argument: str) -> tuple[str, Wanted]:
    """Split ``clip --srt --language French`` into the expression of the clip and what is wanted.

    Raises:
        UsageError: an unknown option, or one without its value.
    """
    at = argument.find("--")
    if at < 0:
        return argument, Wanted()
    wanted, words = Wanted(), iter(shlex.split(argument[at:]))
    for word in words:
        if word not in FLAGS:
            raise UsageError(f"/transcribe has no option {word}. There are {', '.join(FLAGS)}, after the clip.")
        name = word.removeprefix("--")
        if name in ("language", "translate"):
            value = next(words, "")
            if not value or value.startswith("--"):
                raise UsageError(f"{word} needs a language: {word} French")
            wanted = replace(wanted, **{name: value})
        else:
            wanted = replace(wanted, form=name)
    return argument[:at].strip(), wanted


def transcribe(asker: Asker, subject: Labelled, wanted: Wanted, options: Options, view: View) -> Answer:
    """The transcript of a clip of any length, in segments.

    Raises:
        BadAudio: ``subject`` is no clip.
    """
    label, value = subject
    card = asker.card(options.model)
    item = item_of(value, limits_for(options, card))
    if not any(isinstance(part, AudioPart) for part in item.parts):
        raise BadAudio(f"{label} is no clip.", "Hand in (samples, rate), an Audio, or the path of a sound file.")
    words = _words(wanted) if card.extras else ""
    parts = (*item.parts, *([TextPart(words)] if words else []))
    request = Request((Message("user", parts),), model=card.name, sampling=options.sampling)
    draft = replace(draft_of([(label, item)]), model=card.name, notice=card.notice, parts=parts, request=request)
    segments: list[Segment] = []

    def written(answer: Answer) -> Answer:
        return replace(answer, text=write(wanted.form, segments), format=_shown_as(wanted.form))

    return collect(_spoken(asker.client.transcribe(request), segments), draft, view, written)


def _words(wanted: Wanted) -> str:
    spoken = f"The language is {wanted.language}. " if wanted.language else ""
    return spoken + (f"Translate it to {wanted.translate}." if wanted.translate else "")


def _spoken(chunks: Iterable[Chunk], segments: list[Segment]) -> Iterator[Chunk]:
    """The chunks, with each finished segment as text to be seen meanwhile; it is also put into ``segments``."""
    for chunk in chunks:
        if chunk.segment is not None:
            segments.append(chunk.segment)
            chunk = replace(chunk, text=f"{chunk.segment.text}\n")
        yield chunk


def _shown_as(form: str) -> str:
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
