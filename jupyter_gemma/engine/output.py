"""The streaming output parser: text with Gemma's tags in, chunks out. A pure state machine.

``<|channel>thought\\n ... <channel|>`` is thinking, ``<|tool_call>call:NAME{...}<tool_call|>`` a tool call, a tag
that ends the turn ends the answer. What may be the beginning of a tag or of a stop string is held back until
it is known, so the pieces in which text arrives make no difference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from jupyter_gemma.types import Chunk, ToolCall

State = Literal["text", "thinking", "call"]

THINK, _THINK_END = "<|channel>", "<channel|>"
CALL, _CALL_END = "<|tool_call>", "<tool_call|>"
_ENDS = ("<turn|>", "<|turn>", "<end_of_turn>", "<start_of_turn>", "<eos>", "<|tool_response>")
_IGNORED = ("<bos>", "<pad>", "<|think|>")
_TAGS = (THINK, _THINK_END, CALL, _CALL_END, *_ENDS, *_IGNORED)
_ANY_TAG = re.compile("|".join(map(re.escape, _TAGS)))
_AFTER_CALL = re.compile("|".join(map(re.escape, (_CALL_END, *_ENDS))))
_THOUGHT = "thought\n"
_QUOTE = '<|"|>'


class OutputParser:
    """One answer. ``stop``: strings that end it; ``tagged`` False: a base model, whose text has no tags.

    ``stopped``: a stop string or an end of turn was met; text before it was delivered, nothing comes after.
    ``state``: what the tag that came last opened.
    """

    def __init__(self, stop: tuple[str, ...] = (), tagged: bool = True) -> None:
        self.stopped = False
        self._stop = stop
        self._tagged = tagged
        self.state: State = "text"
        self._raw = ""  # not yet looked at: a call, or what may be the beginning of a tag
        self._text = ""  # what may be the beginning of a stop string
        self._header: str | None = None  # what was read of "thought\n"
        self._calls = 0

    def feed(self, text: str) -> list[Chunk]:
        """The chunks that ``text`` completes."""
        if not self._tagged:
            return self._visible(text)
        self._raw += text
        chunks: list[Chunk] = []
        while not self.stopped and (tag := self._tag()):
            before, self._raw = self._raw[: tag.start()], self._raw[tag.end() :]
            chunks += self._deliver(before)
            chunks += self._enter(tag[0])
        if self.state != "call" and not self.stopped:
            certain = len(self._raw) - _partial(self._raw, _TAGS)
            before, self._raw = self._raw[:certain], self._raw[certain:]
            chunks += self._deliver(before)
        return chunks

    def finish(self) -> list[Chunk]:
        """What was held back, once no more text comes. A call that is cut short comes as text."""
        chunks = self._deliver(self._raw)
        self._raw = ""
        return chunks + self._release()

    def _tag(self) -> re.Match[str] | None:
        return (_AFTER_CALL if self.state == "call" else _ANY_TAG).search(self._raw)

    def _enter(self, tag: str) -> list[Chunk]:
        """Change the state; text held back for a stop string can no longer become one."""
        if tag in _IGNORED or (tag == _CALL_END and self.state == "thinking"):
            return []
        chunks = self._release()
        self.stopped = self.stopped or tag in _ENDS
        self.state = "thinking" if tag == THINK else "call" if tag == CALL else "text"
        self._header = ""
        return chunks

    def _deliver(self, text: str) -> list[Chunk]:
        if self.stopped:
            return []
        if self.state == "call":
            return self._call(text)
        return self._thinking(text) if self.state == "thinking" else self._visible(text)

    def _thinking(self, text: str) -> list[Chunk]:
        if self._header is not None:
            self._header += text
            if _THOUGHT.startswith(self._header):
                return []
            text, self._header = self._header.removeprefix(_THOUGHT), None
        return [Chunk(thinking=text)] if text else []

    def _visible(self, text: str) -> list[Chunk]:
        if self.stopped:
            return []
        self._text += text
        found = min(filter(None, (_span(self._text, stop) for stop in self._stop)), default=None)
        if found:
            self.stopped = True
            self._text = self._text[: found[1]]
            return self._release()
        certain = len(self._text) - _partial(self._text, self._stop)
        text, self._text = self._text[:certain], self._text[certain:]
        return [Chunk(text=text)] if text else []

    def _release(self) -> list[Chunk]:
        text, self._text = self._text, ""
        return [Chunk(text=text)] if text else []

    def _call(self, raw: str) -> list[Chunk]:
        try:
            name, arguments = parse_call(raw)
        except (ValueError, RecursionError):
            return self._visible(raw)
        self._calls += 1
        return [Chunk(tool_call=ToolCall(name, arguments, f"call_{self._calls}"))]


def _span(text: str, stop: str) -> tuple[int, int] | None:
    """(end, start) of the first ``stop``: the one that is complete first wins, however text arrives."""
    start = text.find(stop)
    return None if start < 0 else (start + len(stop), start)


def _partial(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that begins one of ``wanted`` without completing it."""
    longest = min(len(text), max(map(len, wanted), default=1) - 1)
    lengths = (size for size in range(longest, 0, -1) if any(word.startswith(text[-size:]) for word in wanted))
    return next(lengths, 0)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of ``call:NAME{key:value,...}``, the way Gemma 4 writes tool calls.

    Keys are bare, strings stand in ``<|"|>``; numbers, true, false, null, {...} and [...] are as in JSON.

    Raises:
        ValueError: anything else.
    """
    head = re.match(r"\s*call:([^\s{}]+)\s*(?={)", text)
    if head is None:
        raise ValueError("no call:NAME{")
    reader = _Reader(text, head.end())
    arguments = reader.mapping()
    if text[reader.at :].strip():
        raise ValueError("text after the last brace")
    return head[1], arguments


class _Reader:
    """A cursor over the arguments of a call."""

    def __init__(self, text: str, at: int) -> None:
        self._text = text
        self.at = at

    def mapping(self) -> dict[str, Any]:
        """``{key:value,...}``."""
        found: dict[str, Any] = {}
        self._take("{")
        while not self._take_if("}"):
            if found:
                self._take(",")
            key = self._string() if self._take_if(_QUOTE) else self._until(":").strip()
            self._take(":")
            found[key] = self._value()
        return found

    def _sequence(self) -> list[Any]:
        found: list[Any] = []
        while not self._take_if("]"):
            if found:
                self._take(",")
            found.append(self._value())
        return found

    def _value(self) -> Any:
        if self._take_if(_QUOTE):
            return self._string()
        if self._take_if("["):
            return self._sequence()
        self._skip()
        if self._text.startswith("{", self.at):
            return self.mapping()
        return json.loads(self._until(",}]"), parse_constant=_refuse)

    def _string(self) -> str:
        end = self._text.index(_QUOTE, self.at)
        found = self._text[self.at : end]
        self.at = end + len(_QUOTE)
        return found

    def _until(self, ends: str) -> str:
        match = re.compile(f"[^{re.escape(ends)}]+").match(self._text, self.at)
        if match is None:
            raise ValueError(f"nothing before {ends!r}")
        self.at = match.end()
        return match[0]

    def _skip(self) -> None:
        while self._text[self.at : self.at + 1].isspace():
            self.at += 1

    def _take_if(self, wanted: str) -> bool:
        self._skip()
        found = self._text.startswith(wanted, self.at)
        self.at += len(wanted) * found
        return found

    def _take(self, wanted: str) -> None:
        if not self._take_if(wanted):
            raise ValueError(f"no {wanted!r} at {self.at}")


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON value")
