"""Answers of a given form, through llguidance: a grammar says at each step which tokens may come next.

The grammar begins where the answer's text begins: thoughts and tool calls before it are free.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from jupyter_gemma.engine.output import CALL, THINK, State
from jupyter_gemma.engine.tokenizer import Tokenizer
from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.types import Constraint

#: White space between the tokens of JSON: one space, or a new line indented. A weak model would write it for ever.
_SPACE = r" |\n {0,32}"


class Grammar:
    """The form of one answer, and how far it is fulfilled.

    Args:
        matcher: llguidance's, at its beginning.
        stops: ids that end the answer.
        think, call: ids that open a thought and a tool call, where the answer may begin with one.
    """

    def __init__(
        self, matcher: llguidance.LLMatcher, stops: Collection[int], think: int | None, call: int | None
    ) -> None:
        self._matcher = matcher
        self._stops = sorted(stops)
        self._think, self._call = think, call
        self._begun = self._called = False

    def allowed(self, logits: Tensor, state: State) -> Tensor:
        """``logits`` [V] with -inf for each token that cannot come next while the answer is in ``state``."""
        if state == "call":
            return logits
        if state == "thinking":  # the thought has to end before the answer may
            return logits.index_fill(0, torch.tensor(self._stops, device=logits.device), float("-inf"))
        allowed = self._mask(len(logits))
        allowed[self._free()] = True
        return logits.masked_fill(~allowed.to(logits.device), float("-inf"))

    def accept(self, token: int, state: State) -> bool:
        """Take the token that was chosen in ``state``; True when nothing can follow it."""
        if state != "text" or token in self._free():
            self._called = self._called or token == self._call
            self._think = None if token == self._think else self._think
            return False
        self._begun = True
        if not self._matcher.consume_token(token):
            raise ModelError(f"The form of the answer cannot be followed: {self._matcher.get_error()}.", _SIMPLER)
        return self._matcher.is_stopped()

    def _free(self) -> list[int]:
        """Tokens that the grammar does not know: openers before the text, and the end after a call."""
        if self._begun:
            return []
        openers = [token for token in (self._think, self._call) if token is not None]
        return [*openers, *self._stops] if self._called else openers

    def _mask(self, size: int) -> Tensor:
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if self._matcher.is_error():
            raise ModelError(f"The form of the answer is too complex: {self._matcher.get_error()}.", _SIMPLER)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[: len(bits)] = torch.from_numpy(bits[:size]).bool()
        return mask


@dataclass
class GrammarMaker:
    """Makes grammars for one vocabulary, which is handed to llguidance when the first is asked for."""

    tokenizer: Tokenizer
    stops: Collection[int]
    _vocabulary: llguidance.LLTokenizer | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, constraint: Constraint, *, thinking: bool, tools: bool) -> Grammar:
        """The grammar of ``constraint``, for an answer that may begin with a thought or a tool call.

        Raises:
            BadOption: llguidance refuses the schema or pattern; its reason is quoted.
        """
        matcher = llguidance.LLMatcher(self._known(), _grammar(constraint), log_level=0)
        if matcher.is_error():
            raise BadOption(f"This {_NAMES[constraint.kind]} cannot be used: {_reason(matcher)}.", _SIMPLER)
        think = self.tokenizer.special.get(THINK) if thinking else None
        return Grammar(matcher, self.stops, think, self.tokenizer.special.get(CALL) if tools else None)

    def _known(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._vocabulary is None:
                words = llguidance.TokenizerWrapper(_Vocabulary(self.tokenizer, self.stops))
                self._vocabulary = llguidance.LLTokenizer(words, eos_token=sorted(self.stops))
            return self._vocabulary


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stops: Collection[int]) -> None:
        self.eos_token_id = min(stops)
        self.tokens = [tokenizer.bytes_of(number) for number in range(tokenizer.size)]
        self.special_token_ids = sorted({*tokenizer.special.values(), *stops})
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _grammar(constraint: Constraint) -> str:
    """llguidance's text of the grammar."""
    write: Mapping[str, Callable[[Any], str]] = {
        "json": lambda _: _json_grammar({"type": "object"}),
        "json_schema": _json_grammar,
        "regex": _regex_grammar,
        "choice": _choice_grammar,
    }
    return write[constraint.kind](constraint.value)


def _json_grammar(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        raise BadOption(f"A JSON schema is an object, not {type(schema).__name__}.", 'Give {"type": "object", ...}.')
    return str(
        llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": _SPACE})
    )


def _regex_grammar(pattern: Any) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise BadOption("A pattern is a text that is not empty.", r"Give a regular expression, as [0-9]+.")
    return str(llguidance.LLMatcher.grammar_from_regex(pattern))


def _choice_grammar(choices: Any) -> str:
    texts = choices if isinstance(choices, Sequence) and not isinstance(choices, str) else ()
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise BadOption("A choice is a list of texts, none of them empty.", 'Give a list, as ["yes", "no"].')
    return str(
        llguidance.LLMatcher.grammar_from_lark(
            "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        )
    )


def _reason(matcher: llguidance.LLMatcher) -> str:
    """llguidance's message in one line."""
    return " ".join(matcher.get_error().split()).rstrip(".")


_NAMES: Mapping[str, str] = {"json": "form", "json_schema": "JSON schema", "regex": "pattern", "choice": "choice"}
_SIMPLER = "Use a simpler one: no look-around, no references to elsewhere, fewer alternatives."
