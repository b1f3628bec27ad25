"""One request on its way through the scheduler: what is computed of it, and where its chunks go."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from jupyter_gemma.engine.answer import Answer
from jupyter_gemma.engine.prefix import LEAST, Kept
from jupyter_gemma.engine.prompt import BuiltPrompt, chunk_end, piece, whole
from jupyter_gemma.engine.speculate import Place, Speculator
from jupyter_gemma.errors import GemmaError
from jupyter_gemma.model.cache import DEFAULT_SLACK, SequenceCache
from jupyter_gemma.model.decoder import Prompt, Span
from jupyter_gemma.types import Chunk, Progress, Usage

#: Items an answer may be ahead of a caller that reads slowly; then it waits for the caller.
AHEAD = 64


class Outbox:
    """Chunks from the thread of the model to the caller; putting never waits.

    ``left``: the caller reads no more. ``wake`` is called when room has come or the caller left.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self.left = False
        self._wake = wake
        self._full = False
        self._items: queue.SimpleQueue[list[Chunk] | GemmaError] = queue.SimpleQueue()

    def put(self, chunks: list[Chunk]) -> None:
        """Hand chunks over; one with a finish is the last."""
        if chunks:
            self._items.put(chunks)

    def fail(self, error: GemmaError) -> None:
        """End with an error."""
        self._items.put(error)

    def full(self) -> bool:
        """Whether the caller is too far behind."""
        self._full = True  # before looking, so that a caller who reads meanwhile wakes us
        self._full = self._items.qsize() >= AHEAD
        return self._full

    def chunks(self) -> Iterator[Chunk]:
        """What was handed over, until the last; the caller's side."""
        try:
            last = False
            while not last:
                item = self._items.get()
                if self._full:
                    self._wake()
                if isinstance(item, GemmaError):
                    raise item
                last = item[-1].finish is not None
                yield from item
        finally:
            self.left = True
            self._wake()


@dataclass(eq=False)
class Sequence:
    """A prompt and its answer. What lies between ``computed`` and ``total`` goes through the model next.

    ``begun``: it has its ``cache``, for which ``reserved`` positions and ``nbytes`` are set aside. ``cached`` positions
    were found computed; ``place`` in the queue was reported last. ``drafted``: guesses of what comes after ``total``.
    """

    built: BuiltPrompt
    answer: Answer
    cancel: threading.Event
    outbox: Outbox
    client: str = ""
    begun: bool = False
    cache: SequenceCache = field(default_factory=lambda: SequenceCache(()))
    reserved: int = 0
    nbytes: int = 0
    cached: int = 0
    place: int = 0
    began_at: float = 0.0
    first_at: float = 0.0
    marks: tuple[int, ...] = ()
    speculator: Speculator | None = None
    drafted: list[int] = field(default_factory=list)
    _hidden: Tensor | None = None
    _blocks: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self._blocks = self.built.prompt.blocks()
        questions = self.built.questions or (0,)
        self.mark((questions[0], questions[-1], self.length))

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.built.prompt.ids)

    @property
    def total(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.answer.ids)

    @property
    def computed(self) -> int:
        """Of these, how many went through the model."""
        return self.cache.length

    @property
    def pending(self) -> int:
        """How many did not: 1 while the answer is written, more while the prompt is read."""
        return self.total - self.computed

    @property
    def most(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return self.length + self.answer.limit

    @property
    def stopped(self) -> bool:
        """Whether nobody wants the rest."""
        return self.outbox.left or self.cancel.is_set()

    def mark(self, places: Iterable[int]) -> None:
        """Also stay able to go back to ``places``; one just before another needs no mark of its own."""
        later = 0
        kept: list[int] = []
        for place in sorted({*self.marks, *places}, reverse=True):
            if place >= LEAST and (not kept or later - place > DEFAULT_SLACK // 4):
                kept.append(place)
                later = place
        self.marks = tuple(kept)

    def sharable(self) -> Tensor:
        """Keys of the longest part of the prompt that may come from another sequence: one token is left to compute."""
        return self.built.keys[: whole(self.built.prompt, self.length - 1)]

    def end_of_chunk(self, size: int) -> int:
        """Where the next chunk of about ``size`` tokens ends."""
        if self.computed < self.length:
            return chunk_end(self.built.prompt, self.computed, size)
        return min(self.computed + size, self.total)

    def rows(self, end: int) -> tuple[Prompt, Span]:
        """What goes into the model to compute up to ``end``."""
        start, adapter = self.computed, self.built.adapter
        if start >= self.length:
            ids = [*self.answer.ids[start:], *self.drafted][: end - start]
            return Prompt(torch.tensor(ids)), Span(end - start, self.cache, adapter=adapter)
        blocks = None if self._blocks is None else self._blocks[start:end]
        return piece(self.built.prompt, start, end), Span(end - start, self.cache, blocks, adapter)

    def draft(self, most: int, company: int) -> None:
        """Guess what comes next, at most ``most`` tokens; so many sequences are computed together."""
        self.drafted = []
        if self.speculator is not None and self._hidden is not None:
            most = min(most, self.reserved - self.total, self.answer.limit - self.answer.written - 1)
            self.drafted = self.speculator.draft(Place(self.answer.ids, self._hidden, self.cache), most, company)

    def take(self, hidden: Tensor, logits: Tensor) -> int:
        """Choose tokens as long as they are the drafted ones, and one more; hand over what they give.

        Args:
            hidden: [1 + drafted, hidden], the states of the last token and the drafted ones; ``logits``: theirs.

        Returns:
            The number of tokens chosen.
        """
        if self.answer.written == 0:
            self.first_at = time.perf_counter()
        drafted, self.drafted = self.drafted, []
        before, chosen, right = self.total, 0, True
        while right and chosen <= len(drafted):
            self.outbox.put(self.answer.take(logits[chosen]))
            right = self.answer.finish is None and self.answer.ids[-1:] == drafted[chosen : chosen + 1]
            chosen += 1
        self._hidden = hidden[chosen - 1]
        if drafted:
            self._settle(drafted, before)
        return chosen

    def _settle(self, drafted: list[int], before: int) -> None:
        """Take back what was computed of wrong guesses."""
        accepted = 0
        for guess, token in zip(drafted, self.answer.ids[before:], strict=False):
            if guess != token:
                break
            accepted += 1
        self.cache.rewind(before + accepted)
        if self.speculator is not None:
            self.speculator.learn(len(drafted), accepted)

    def report(self, phase: str, done: int, total: int = 0) -> None:
        """Hand progress over, unless the caller is behind."""
        if not self.outbox.full():
            self.outbox.put([Chunk(progress=Progress(phase, done, total))])

    def end(self) -> None:
        """Hand over what is held back, and the last chunk."""
        self.outbox.put([*self.answer.flush(), Chunk(finish=self.answer.finish, usage=self.usage())])

    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        now = time.perf_counter()
        first = self.first_at or now
        return replace(
            self.built.usage,
            cached_tokens=self.cached,
            completion_tokens=self.answer.written,
            prefill_seconds=first - (self.began_at or now),
            decode_seconds=now - first,
        )

    def forget(self) -> None:
        """Part with the cache; everything is computed again if it goes on."""
        self.begun, self.cache = False, SequenceCache(())

    def kept(self) -> Kept:
        """What is computed of it, for others that begin alike."""
        written = torch.tensor(self.answer.ids[self.length : self.computed], dtype=torch.int64)
        keys = torch.cat((self.built.keys, written))[: self.computed]
        return Kept(keys, self.cache, self.client, (self.built.questions or (0,))[-1])
