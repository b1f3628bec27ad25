"""Training data: a JSONL file of conversations, read line by line, and what a pass takes of it.

A line is an object with ``messages``, each with ``role`` and ``content``: text, or a list of parts. A part is
``{"type": "text", "text": ...}``, ``{"type": "image", "image": ...}`` or ``{"type": "audio", "audio": ...}``; a
picture or clip is a path (relative to the file) or a data URI. OpenAI's ``image_url`` and ``input_audio`` are read
too. Every turn of the assistant is learnt, as an answer to what stands before it.

Only where each line begins is kept in memory (8 bytes a line); all else is read when its turn comes.
"""

from __future__ import annotations

import base64
import binascii
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.errors import GemmaError, PromptTooLong, RequestError
from jupyter_gemma.model.decoder import Prompt
from jupyter_gemma.types import AudioPart, ImagePart, Message, Part, Request, TextPart

ROLES = ("system", "user", "assistant")
_FORM = 'Write one {"messages": [{"role": ..., "content": ...}, ...]} a line.'


@dataclass(frozen=True)
class Example:
    """Ids int64 [T] of a prompt with its media, and of the answer behind it, which begins at ``start``."""

    prompt: Prompt
    start: int

    def __len__(self) -> int:
        return len(self.prompt.ids)


@dataclass(frozen=True)
class Pack:
    """Examples for one pass, one after the other.

    ``prompt``: ids [N] and media of all; ``counts``: tokens of each; ``blocks``: as :class:`Span` has them. The states
    at ``rows`` [M] are to give the tokens ``targets`` [M]: those of the answers, and nothing else.
    """

    prompt: Prompt
    counts: tuple[int, ...]
    blocks: tuple[Tensor | None, ...]
    rows: Tensor
    targets: Tensor


class Lines:
    """The conversations of a file, each read and checked when it is asked for.

    Making one reads the file once and checks the form of every line.

    Raises:
        RequestError: no such file, an empty one, or a line that is no conversation; the line is named.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        try:
            with path.open("rb") as file:
                for number, (start, line) in enumerate(_lines(file), start=1):
                    if line.strip():
                        self._read(line, number, load=False)
                        self._starts.append(start)
        except OSError as error:
            raise RequestError(f"{path} cannot be read: {error}.", "Give a file of conversations.") from error
        if not self._starts:
            raise RequestError(f"{path} has no lines.", _FORM)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[Message, ...]:
        """The messages of conversation ``index``, pictures and clips read."""
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return self._read(file.readline(), self.number(index), load=True)

    def number(self, index: int) -> int:
        """The number of the line with conversation ``index``, from 1; found by counting, for it is asked for errors."""
        with self.path.open("rb") as file:
            return next(number for number, (start, _) in enumerate(_lines(file), 1) if start == self._starts[index])

    def examples(self, index: int, builder: PromptBuilder, image_tokens: int | None = None) -> list[Example]:
        """One example for each turn of the assistant in conversation ``index``.

        Raises:
            GemmaError: a picture or clip that cannot be used, or a conversation that is too long; the line is named.
        """
        try:
            return list(_examples(self[index], builder, image_tokens))
        except GemmaError as error:
            where = f"{self.path}, line {self.number(index)}: "
            raise error if where in error.message else type(error)(where + error.message, error.fix) from error

    def _read(self, line: bytes, number: int, load: bool) -> tuple[Message, ...]:
        try:
            return _conversation(json.loads(line), self.path.parent, load)
        except RecursionError:
            raise RequestError(f"{self.path}, line {number}: it nests too deep.", _FORM) from None
        except (ValueError, RequestError) as error:
            said = error.message if isinstance(error, RequestError) else f"this is not JSON: {error}."
            raise RequestError(f"{self.path}, line {number}: {said}", _FORM) from error


def _lines(file: Any) -> Iterator[tuple[int, bytes]]:
    """Every line with the place where it begins."""
    start = 0
    for line in file:
        yield start, line
        start += len(line)


# -- one line ----------------------------------------------------------------------------------------------------


def _conversation(value: Any, folder: Path, load: bool) -> tuple[Message, ...]:
    messages = _of(value, dict, "the line").get("messages")
    if unknown := sorted(set(value) - {"messages"}):
        raise RequestError(f"there is no key {unknown[0]!r}.")
    found = tuple(
        _message(message, f"messages[{place}]", folder, load)
        for place, message in enumerate(_of(messages, list, "messages"))
    )
    if not any(message.role == "assistant" for message in found):
        raise RequestError("no message is the assistant's, so there is nothing to learn.")
    if found[0].role == "assistant":
        raise RequestError("the assistant speaks first: an answer needs a question.")
    return found


def _message(value: Any, where: str, folder: Path, load: bool) -> Message:
    role, content = _of(value, dict, where).get("role"), value.get("content")
    if unknown := sorted(set(value) - {"role", "content"}):
        raise RequestError(f"{where} has a key {unknown[0]!r}; there are role and content.")
    if role not in ROLES:
        raise RequestError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}.")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else _of(content, list, f"{where}.content")
    read = tuple(_part(part, f"{where}.content[{place}]", folder, load) for place, part in enumerate(parts))
    message = Message(role, read)
    if role == "assistant" and (not message.text.strip() or len(read) != sum(isinstance(p, TextPart) for p in read)):
        raise RequestError(f"{where} is an answer, which must be text, and not empty.")
    return message


def _part(value: Any, where: str, folder: Path, load: bool) -> Part:
    kind = _of(value, dict, where).get("type")
    if kind == "text":
        return TextPart(_of(value.get("text"), str, f"{where}.text"))
    if kind in ("image", "image_url"):
        link = value.get(kind)
        link = link.get("url") if isinstance(link, dict) else link
        return ImagePart(_media(_of(link, str, f"{where}.{kind}"), where, folder, load))
    if kind == "audio":
        return AudioPart(_media(_of(value.get("audio"), str, f"{where}.audio"), where, folder, load))
    if kind == "input_audio":
        data = _of(_of(value.get(kind), dict, f"{where}.{kind}").get("data"), str, f"{where}.{kind}.data")
        return AudioPart(_decoded(data, where))
    raise RequestError(f"{where}.type is {kind!r}; it must be text, image or audio.")


def _media(link: str, where: str, folder: Path, load: bool) -> bytes:
    if link.startswith("data:"):
        return _decoded(link.partition(",")[2], where)
    if "://" in link:
        raise RequestError(f"{where} names an address, and nothing is fetched: {link[:80]!r}.")
    path = folder / link
    if not path.is_file():
        raise RequestError(f"{where} names a file that is not there: {path}.")
    return path.read_bytes() if load else b""


def _decoded(text: str, where: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} is no base64: {error}.") from error
    if not data:
        raise RequestError(f"{where} is empty.")
    return data


def _of(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object", list: "a list", str: "text"}
        raise RequestError(f"{where} must be {names[kind]}, not {type(value).__name__}.")
    return value


# -- from a conversation to tokens -------------------------------------------------------------------------------


def _examples(messages: Sequence[Message], builder: PromptBuilder, image_tokens: int | None) -> Iterator[Example]:
    for place, message in enumerate(messages):
        if message.role == "assistant":
            asked = Request(tuple(messages[:place]), image_tokens=image_tokens)
            told = replace(asked, messages=(*asked.messages, message))
            prompt = builder.build(asked).prompt
            answer = torch.tensor(answer_ids(builder, builder.render(asked), builder.render(told)))
            count = len(prompt.ids) + len(answer)
            if count > builder.context_length:
                raise PromptTooLong(
                    f"the conversation has {count} tokens; the context holds {builder.context_length}.",
                    "Shorten it, or raise context_length if the model allows it.",
                )
            yield Example(replace(prompt, ids=torch.cat((prompt.ids, answer))), len(prompt.ids))


def answer_ids(builder: PromptBuilder, asked: str, told: str) -> list[int]:
    """The tokens that the model should write after the prompt ``asked``, the one that ends its turn included.

    ``told`` is the rendered conversation with the answer in it. Where it does not begin with ``asked`` (a template may
    open the answer with an empty thought, which it leaves out of past turns), the answer begins where they part.
    """
    encode, stops = builder.tokenizer.encode, builder.config.ids.eos
    if told.startswith(asked):
        rest = encode(told[len(asked) :])
    else:
        whole, before = encode(told), encode(asked)
        same = next((at for at, pair in enumerate(zip(whole, before, strict=False)) if pair[0] != pair[1]), len(before))
        rest = whole[same:]
    end = next((at for at, token in enumerate(rest) if token in stops), len(rest))
    # A base model's text goes on without an end; we teach it one.
    return [*rest[:end], rest[end] if end < len(rest) else stops[0]]


def pack(examples: Sequence[Example]) -> Pack:
    """Put examples one after the other."""
    ids, soft, rows, targets, start = [], [], [], [], 0
    for example in examples:
        ids.append(example.prompt.ids)
        soft += [replace(media, offset=media.offset + start) for media in example.prompt.soft]
        rows.append(torch.arange(start + example.start - 1, start + len(example) - 1))
        targets.append(example.prompt.ids[example.start :])
        start += len(example)
    return Pack(
        Prompt(torch.cat(ids), tuple(soft)),
        tuple(len(example) for example in examples),
        tuple(example.prompt.blocks() for example in examples),
        torch.cat(rows),
        torch.cat(targets),
    )


def packs(examples: Sequence[Example], most: int) -> list[Pack]:
    """As few passes of at most ``most`` tokens as first-fit finds, the longest examples first."""
    bins: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        fitting = (found for found in bins if sum(map(len, found)) + len(example) <= most)
        chosen = next(fitting, None)
        if chosen is None:
            bins.append([example])
        else:
            chosen.append(example)
    return [pack(found) for found in bins]


def chosen(step: int, batch: int, count: int, seed: int) -> list[int]:
    """The conversations of a step: every epoch is a new shuffle of all ``count``, cut into steps without a gap."""
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: _order(epoch, count, seed) for epoch in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]


def _order(epoch: int, count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed << 20) + epoch))
