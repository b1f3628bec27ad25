"""One answer: from the scores of the next token to chunks, until it ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jupyter_gemma.engine.constraint import Grammar
from jupyter_gemma.engine.output import OutputParser
from jupyter_gemma.engine.sampling import Sampler
from jupyter_gemma.engine.tokenizer import Detokenizer, Tokenizer
from jupyter_gemma.types import Chunk, FinishReason, TokenChance


@dataclass
class Answer:
    """What was read and written so far (``ids``), how to go on, and why it ended (``finish``).

    ``stops``: ids that end it; ``limit``: the most tokens; ``logprobs``: None, or how many alternatives to report.
    """

    ids: list[int]
    sampler: Sampler
    parser: OutputParser
    text: Detokenizer
    tokenizer: Tokenizer
    stops: frozenset[int]
    limit: int
    grammar: Grammar | None = None
    logprobs: int | None = None
    written: int = 0
    called: bool = False
    finish: FinishReason | None = None

    def take(self, logits: Tensor) -> list[Chunk]:
        """Choose the next token from its ``logits`` [V]; sets ``finish`` when it was the last.

        Raises:
            ModelError: no token can be chosen.
        """
        state = self.parser.state
        allowed = logits if self.grammar is None else self.grammar.allowed(logits, state)
        token = self.sampler.choose(allowed, self.ids)
        if token in self.stops:
            self.finish = "stop"
            return []
        complete = self.grammar is not None and self.grammar.accept(token, state)
        chunks = self._write(token)
        if self.logprobs is not None and state == self.parser.state == "text":
            chunks.append(Chunk(logprobs=(token_chance(self.tokenizer, logits, token, self.logprobs),)))
        if self.parser.stopped or complete:
            self.finish = "stop"
        elif self.written >= self.limit:
            self.finish = "length"
        return chunks

    def flush(self) -> list[Chunk]:
        """What the detokenizer and the parser still hold back."""
        tail = self.text.flush()
        chunks = self._note_calls([*(self.parser.feed(tail) if tail else []), *self.parser.finish()])
        if self.called and self.finish == "stop":
            self.finish = "tool_calls"
        return chunks

    def _write(self, token: int) -> list[Chunk]:
        self.written += 1
        self.ids.append(token)
        return self._note_calls(self.parser.feed(self.text.push(token)))

    def _note_calls(self, chunks: list[Chunk]) -> list[Chunk]:
        self.called = self.called or any(chunk.tool_call for chunk in chunks)
        return chunks


def token_chance(tokenizer: Tokenizer, logits: Tensor, token: int, top: int) -> TokenChance:
    """The chance of ``token`` by the model's scores ``logits`` [V], and of the ``top`` likeliest tokens."""
    chances = torch.log_softmax(logits, dim=0)
    best, ids = torch.topk(chances, top)
    likeliest = zip(ids.tolist(), best.tolist(), strict=True)
    alternatives = tuple(_chance(tokenizer, number, chance) for number, chance in likeliest)
    return _chance(tokenizer, token, chances[token].item(), alternatives)


def _chance(tokenizer: Tokenizer, token: int, chance: float, top: tuple[TokenChance, ...] = ()) -> TokenChance:
    data = tokenizer.bytes_of(token)
    return TokenChance(data.decode("utf-8", "replace"), data, chance, top)
