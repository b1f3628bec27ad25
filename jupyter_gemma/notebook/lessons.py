"""What a model can learn from, as lines of a file of conversations: rows of a table, and answers that were given."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.bundle import METADATA_KEY, metadata
from jupyter_gemma.notebook.context import parts_of
from jupyter_gemma.notebook.items import mime_of
from jupyter_gemma.types import AudioPart, ImagePart, Message, Part, TextPart

# A line of the file, see ``jupyter_gemma.finetune.data``.
Lesson = dict[str, Any]

_MEDIA = ("image", "audio")


def lessons_of(data: Any) -> list[Lesson]:
    """Lines for a table, or for answers.

    Raises:
        BadOption: it is neither, or a row or answer that cannot be learnt.
    """
    if isinstance(data, Sequence) and data and all(isinstance(each, Answer) for each in data):
        return whole(_of_answers(data))
    return list(of_table(data))


def of_table(table: Any) -> Iterator[Lesson]:
    """The rows of a table. A picture or clip is the path of a file, or what a question could hold: a figure, bytes, ...

    Raises:
        BadOption: it has no columns ``prompt`` and ``answer``. BadImage, BadAudio: a value that cannot be used.
    """
    names = [str(name) for name in getattr(table, "columns", ())]
    if not {"prompt", "answer"} <= set(names):
        raise BadOption(
            f"The table has the columns {', '.join(names) or 'of no table'}.", "It needs prompt and answer."
        )
    for row in table.to_dict("records"):
        media = [part for kind in _MEDIA for part in _medium(kind, row.get(kind))]
        asked = [*media, {"type": "text", "text": str(row["prompt"])}]
        yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": str(row["answer"])}]}


def _medium(kind: str, value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, str | Path):
        yield {"type": kind, kind: str(Path(value).resolve())}
    else:  # a cell without a value becomes text, as all that is neither picture nor sound
        yield from (_part(part) for part in parts_of(value) if not isinstance(part, TextPart))


def _of_answers(answers: Iterable[Answer]) -> Iterator[Lesson]:
    for number, answer in enumerate(answers):
        fault = unfit(metadata(answer).get(METADATA_KEY, {}))
        if fault or answer.request is None:
            raise BadOption(f"Answer {number} cannot be learnt: {fault or 'its question is gone'}.", "Leave it out.")
        yield lesson(answer.request.messages, answer.text)


def unfit(record: Mapping[str, Any]) -> str:
    """Why an answer with this record cannot be learnt, whatever was asked; "": it can."""
    if "finish" not in record or not record.get("inputs"):
        return "an older version saved it, without what is needed"
    if record["finish"] != "stop":
        return "it was stopped or cut before its end"
    if "called" in record:
        return f"it called {', '.join(record['called'])}, and what came back is not saved"
    return "a transcript of this kind is put together from many answers" if "transcript" in record else ""


def lesson(messages: Iterable[Message], answer: str) -> Lesson:
    """A conversation that ends with ``answer``; pictures and clips become data URIs.

    Raises:
        BadOption: a video, which cannot be learnt.
    """
    told = [{"role": message.role, "content": _content(message.parts)} for message in messages]
    return {"messages": [*told, {"role": "assistant", "content": answer}]}


def _content(parts: Sequence[Part]) -> str | list[dict[str, str]]:
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return [_part(part) for part in parts]


def _part(part: Part) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, ImagePart):
        return {"type": "image", "image": _data_uri(part.data, "image/png")}
    if isinstance(part, AudioPart):
        return {"type": "audio", "audio": _data_uri(part.data, "audio/wav")}
    raise BadOption("A video cannot be learnt.", "Leave that answer out.")


def _data_uri(data: bytes, usual: str) -> str:
    return f"data:{mime_of(data, usual)};base64,{base64.b64encode(data).decode()}"


def whole(lessons: Iterable[Lesson]) -> list[Lesson]:
    """Those that are not the beginning of another: each answer of a conversation is to be learnt once."""
    found = list(lessons)
    turns = [[json.dumps(message) for message in each["messages"]] for each in found]
    begun = {tuple(each[:count]) for each in turns for count in range(1, len(each))}
    return [each for each, key in zip(found, turns, strict=True) if tuple(key) not in begun]


def write_lessons(lessons: Iterable[Lesson], path: Path) -> None:
    """One line each."""
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in lessons]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
