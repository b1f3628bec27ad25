"""Conversations to learn from, out of the answers that notebooks have saved.

An answer counts as accepted if it is whole, its cell neither failed nor is tagged ``rejected``, and the same question
is not answered again further down. What it was asked is put together by the digests in its record: the user's own
words are saved there, with ``--keep`` all else too. Otherwise pictures and clips are looked for among the outputs of
the notebook and the files that its code names. What cannot be found so is not guessed: that answer is left out, and the
reason told.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jupyter_gemma.errors import GemmaError, RequestError
from jupyter_gemma.notebook.asking import MEDIA_SUFFIXES
from jupyter_gemma.notebook.bundle import METADATA_KEY
from jupyter_gemma.notebook.context import parts_of
from jupyter_gemma.notebook.items import Limits
from jupyter_gemma.notebook.lessons import Lesson, lesson, unfit, whole
from jupyter_gemma.notebook.provenance import name_of, part_of
from jupyter_gemma.notebook.texts import joined
from jupyter_gemma.types import Message, Part, TextPart

REJECTED = "rejected"
PANEL_ANSWER = "application/vnd.jupyter-gemma.answer+json"

_URI = re.compile(r"data:(?:image|audio)/[\w.+-]+;base64,([A-Za-z0-9+/=]+)")
_NAME = re.compile(r"'([^'\n]{1,255})'|\"([^\"\n]{1,255})\"|([^\s'\"(){}\[\],=]{1,255})")
_LOST = {
    "text": "the text of a table or another value stood in its question, which only --keep saves",
    "image": "its picture is neither shown in the notebook, nor a file named there, nor saved by --keep",
    "audio": "its clip is neither played in the notebook, nor a file named there, nor saved by --keep",
    "video": "a video cannot be learnt",
}

Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """An answer in a notebook file; ``fault`` says why it is not accepted."""

    place: str
    fault: str
    record: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def harvest(paths: Sequence[Path]) -> tuple[list[Lesson], list[str]]:
    """The accepted answers of notebooks with their questions, and for each of the others its place and the reason.

    Raises:
        RequestError: a file cannot be read, or is no notebook.
    """
    notebooks = {path: _cells(path) for path in paths}
    saved = [answer for path, cells in notebooks.items() for answer in _answers(path, cells)]
    accepted = [answer for answer in saved if not answer.fault]
    left = [f"{answer.place}: {answer.fault}" for answer in saved if answer.fault]
    known = _known(saved, notebooks)
    said = {name_of(TextPart(answer.text)): TextPart(answer.text) for answer in accepted}
    found: dict[str, tuple[str, Lesson]] = {}
    for answer in accepted:
        try:
            messages = _messages(answer.record["inputs"], known, said)
        except RequestError as error:
            left.append(f"{answer.place}: {error.message}")
            continue
        question, line = json.dumps(lesson(messages, "")), lesson(messages, answer.text)
        place, before = found.get(question, ("", line))
        if before != line:
            left.append(f"{place}: the same was asked again later, and answered otherwise")
        found[question] = answer.place, line
    return whole(line for _, line in found.values()), left


def _cells(path: Path) -> list[Cell]:
    try:
        cells: list[Cell] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [cell for cell in cells if cell["cell_type"]]
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{path} is no notebook: {error!r}.", "Give files that Jupyter saved.") from error


# -- answers -----------------------------------------------------------------------------------------------------


def _answers(path: Path, cells: Iterable[Cell]) -> Iterator[Saved]:
    for number, cell in enumerate(cells, start=1):
        count = cell.get("execution_count")
        place = f"{path}, cell [{count}]" if count else f"{path}, {number}. cell"
        outputs = cell.get("outputs", [])
        for output in outputs:
            record = output.get("metadata", {}).get(METADATA_KEY)
            if PANEL_ANSWER in output.get("data", {}):
                yield Saved(place, "the panel saves answers without what was asked")
            elif record:
                text = joined(output["data"].get("text/plain", ""))[: record.get("characters", 0)]
                yield Saved(place, _fault(cell, outputs, record, text), record, text)


def _fault(cell: Cell, outputs: Iterable[Mapping[str, Any]], record: Mapping[str, Any], text: str) -> str:
    if REJECTED in cell.get("metadata", {}).get("tags", ()):
        return f"its cell is tagged {REJECTED}"
    if any(output.get("output_type") == "error" for output in outputs):
        return "its cell failed"
    return unfit(record) or ("" if text.strip() else "it is empty")


# -- questions ---------------------------------------------------------------------------------------------------


def _messages(
    inputs: Iterable[Mapping[str, str]], known: Mapping[str, Part], said: Mapping[str, Part]
) -> list[Message]:
    """The messages of a record, its inputs found by their digests; inputs of one role are one message."""
    messages = []
    for role, group in groupby(inputs, key=lambda each: each["role"]):
        parts = []
        for each in group:
            part = (said if role == "assistant" else known).get(each["sha256"])
            if part is None:
                raise RequestError(
                    "an earlier answer of its conversation is left out" if role == "assistant" else _LOST[each["kind"]]
                )
            parts.append(part)
        messages.append(Message(role, tuple(parts)))
    return messages


def _known(answers: Iterable[Saved], notebooks: Mapping[Path, Sequence[Cell]]) -> dict[str, Part]:
    """What records hold, and where one only names a medium, all media of the notebooks, by digest."""
    inputs = [each for answer in answers for each in answer.record.get("inputs", [])]
    known = {each["sha256"]: part for each in inputs if (part := part_of(each))}
    if any(each["kind"] in ("image", "audio") and each["sha256"] not in known for each in inputs):
        for path, cells in notebooks.items():
            for data in {data for cell in cells for data in _media(cell, path.parent)}:
                known.update({name_of(part): part for part in _as_sent(data)})
    return known


def _as_sent(data: bytes) -> tuple[Part, ...]:
    """What a question sends of a picture or clip."""
    try:
        return tuple(part for part in parts_of(data) if not isinstance(part, TextPart))
    except GemmaError:
        return ()


def _media(cell: Cell, folder: Path) -> Iterator[bytes]:
    for output in cell.get("outputs", []):
        for mime, value in output.get("data", {}).items():
            if mime == "image/svg+xml":
                yield joined(value).encode()
            elif mime.startswith(("image/", "audio/")):
                yield from _decoded(joined(value))
            elif mime in ("text/html", "text/markdown"):
                for uri in _URI.finditer(joined(value)):
                    yield from _decoded(uri[1])
    if cell["cell_type"] == "code":
        yield from _named(joined(cell.get("source", "")), folder)


def _decoded(text: str) -> Iterator[bytes]:
    try:
        yield base64.b64decode(text)
    except ValueError:
        return  # a broken output is no reason to refuse the others


def _named(source: str, folder: Path) -> Iterator[bytes]:
    """Files of pictures and sound whose names stand in code."""
    for match in _NAME.finditer(source):
        path = folder / next(filter(None, match.groups()))
        if path.suffix.lower() in MEDIA_SUFFIXES and path.is_file() and path.stat().st_size <= Limits().file_bytes:
            yield path.read_bytes()
