"""Who is computed when: one thread owns the model and takes steps over all requests.

A step is one pass over the weights: the next token of every answer that is being written, and at most one chunk of one
prompt. What is slow before it (reading pictures, tokenising) is done by the caller's thread, and nobody waits for a
caller that reads slowly.

Keys and values of running and kept sequences share one budget of memory. A request is admitted when what it is likely
to need fits beside the running ones; kept ones make way. Should the running ones outgrow the budget, the youngest goes
back to the queue and is computed again later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from jupyter_gemma.engine.prefix import LEAST, PrefixPool
from jupyter_gemma.engine.sequence import Sequence
from jupyter_gemma.errors import GemmaError, ModelError, OutOfMemory, ServerBusy, ServerError
from jupyter_gemma.model.cache import SequenceCache, cache_bytes
from jupyter_gemma.model.decoder import Gemma, Prompt, SoftTokens, Span
from jupyter_gemma.model.placement import release_freed_memory
from jupyter_gemma.types import EngineStatus

logger = logging.getLogger(__name__)

#: Positions set aside for an answer at first; when it gets longer an eighth of the sequence more, at least these.
HEADROOM = 256
#: Seconds between two looks for cancelled requests while nothing can be computed.
PATROL = 0.2
#: Seconds over which the speed is told.
SPEED_SECONDS = 10.0
_TOTALS = (
    "requests",
    "steps",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "cache_hits",
    "drafted_tokens",
    "accepted_tokens",
)

#: Sequences and up to where they are computed.
Work = list[tuple[Sequence, int]]
#: Sequences of one lane are served in their order; lanes take turns.
Lane = Callable[[Sequence], Hashable]
#: Lane -> the step in which it was last served.
Served = Mapping[Hashable, int]


def in_turn(sequences: list[Sequence], lane: Lane, served: Served) -> list[Sequence]:
    """``sequences`` (oldest first) in fair order: lanes take turns, the one ``served`` longest ago first."""
    before: Counter[Hashable] = Counter()
    ranks = []
    for place, sequence in enumerate(sequences):
        key = lane(sequence)
        ranks.append((before[key], served.get(key, 0), place))
        before[key] += 1
    return [sequences[place] for _, _, place in sorted(ranks)]


def client_of(sequence: Sequence) -> Hashable:
    """The lane in which a request waits to be admitted."""
    return sequence.client


def plan(ready: list[Sequence], lane: Lane, served: Served) -> tuple[list[Sequence], Sequence | None]:
    """The rows of the next step: all answers that are written, and the prompt whose turn it is to be read."""
    writing = [sequence for sequence in ready if sequence.begun and sequence.pending == 1]
    reading = [sequence for sequence in ready if not (sequence.begun and sequence.pending == 1)]
    return writing, next(iter(in_turn(reading, lane, served)), None)


def forward(model: Gemma, work: Work) -> list[tuple[Sequence, Tensor, Tensor]]:
    """One pass up to the given end of each sequence, or of its draft.

    Returns:
        For each that has come to its end: the states [n, hidden] and scores [n, vocab] of its last token and its draft.
    """
    ids: list[Tensor] = []
    soft: list[SoftTokens] = []
    spans: list[Span] = []
    finished: list[tuple[Sequence, range]] = []
    count = 0
    device = model.norm.weight.device
    for sequence, end in work:
        prompt, span = sequence.rows(end)
        ids.append(prompt.ids)
        soft += [_moved(media, count, device) for media in prompt.soft]
        spans.append(span)
        count += span.count
        if end >= sequence.total:
            finished.append((sequence, range(count - 1 - (end - sequence.total), count)))
    hidden: Tensor = model(model.embed(Prompt(torch.cat(ids).to(device), tuple(soft))), spans)
    if not finished:
        return []
    wanted = [row for _, rows in finished for row in rows]
    hidden = hidden if len(wanted) == count else hidden[wanted]
    sizes = [len(rows) for _, rows in finished]
    parts = zip(finished, torch.split(hidden, sizes), torch.split(model.logits(hidden), sizes), strict=True)
    return [(sequence, states, scores) for (sequence, _), states, scores in parts]


def _moved(media: SoftTokens, offset: int, device: torch.device) -> SoftTokens:
    values = (media.patches, media.positions, media.frames)
    patches, positions, frames = (None if rows is None else rows.to(device) for rows in values)
    return replace(media, offset=media.offset + offset, patches=patches, positions=positions, frames=frames)


class Scheduler:
    """Runs the requests handed to :meth:`submit` until :meth:`close`.

    Args:
        model: used by the scheduler's thread alone from now on.
        chunk: tokens of a prompt that are read in one step.
        memory: bytes for keys and values.
        max_waiting: requests that may wait.
        dtype: of stored keys and values; None: the model's own.
    """

    def __init__(
        self, model: Gemma, *, chunk: int, memory: int, max_waiting: int, dtype: torch.dtype | None = None
    ) -> None:
        self._model = model
        self._chunk, self._memory, self._max_waiting, self._dtype = chunk, memory, max_waiting, dtype
        self._waiting: list[Sequence] = []
        self._active: list[Sequence] = []  # the youngest last
        self._pool = PrefixPool()
        self._admitted: Served = {}
        self._read: Served = {}
        self._totals = dict.fromkeys(_TOTALS, 0)
        self._speed: deque[tuple[float, int]] = deque(maxlen=512)
        self._lock = threading.Lock()  # over _waiting and _closed
        self._news = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jupyter-gemma-engine", daemon=True)
        self._thread.start()

    # -- any thread --

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    def submit(self, sequence: Sequence) -> None:
        """Take a request; what becomes of it comes out of its outbox.

        Raises:
            OutOfMemory: its prompt alone is more than the whole budget. ServerBusy: too many wait already.
            ServerError: closed.
        """
        needed = self._bytes(sequence, sequence.length + 1)
        if needed > self._memory:
            raise OutOfMemory(
                f"Keys and values of this prompt take {_size(needed)}; cache_memory is {_size(self._memory)}.",
                "Shorten the prompt, or raise cache_memory.",
            )
        with self._lock:
            if self._closed:
                raise ServerError("The model was unloaded.", "Ask again: the next question loads it.")
            if len(self._waiting) >= self._max_waiting:
                raise ServerBusy(
                    f"{len(self._waiting)} requests wait already.", "Ask again later, or raise max_waiting."
                )
            self._waiting.append(sequence)
            self._totals["requests"] += 1
        self._news.set()

    def status(self) -> EngineStatus:
        """See :meth:`jupyter_gemma.types.Engine.status`."""
        now = time.perf_counter()
        recent = [(when, count) for when, count in list(self._speed) if now - when < SPEED_SECONDS]
        written = sum(count for _, count in recent)
        totals = EngineStatus(**self._totals)  # type: ignore[arg-type]
        return replace(
            totals,
            active=len(self._active),
            waiting=len(self._waiting),
            tokens_per_second=written / (now - recent[0][0]) if recent else 0.0,
            cache_bytes=self._used() + self._pool.nbytes,
            cache_limit=self._memory,
        )

    def close(self) -> None:
        """End all streams as cancelled within a step, and the thread."""
        with self._lock:
            self._closed = True
        self._news.set()
        self._thread.join()

    # -- the thread of the model --

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._closed:
                self._news.clear()
                if not self._step():
                    self._news.wait(PATROL if self._active or self._waiting else None)
        with self._lock:
            left, self._waiting = [*self._active, *self._waiting], []
        for sequence in left:
            sequence.answer.finish = "cancelled"
            sequence.end()
        self._active = []
        self._pool.shrink(0)

    def _step(self) -> bool:
        """One pass over the weights; False if there was nothing to compute."""
        self._sweep()
        self._admit()
        self._grow()
        ready = [sequence for sequence in self._active if not sequence.outbox.full()]
        writing, reading = plan(ready, self._lane, self._read)
        work = self._drafted(writing)
        if reading is not None and self._begin(reading):
            self._read = self._served(self._read, reading, self._lane)
            work.append((reading, reading.end_of_chunk(self._chunk)))
        if not work:
            return False
        self._totals["steps"] += 1
        with self._ending([sequence for sequence, _ in work]):
            scored = forward(self._model, work)
            if reading is not None:
                release_freed_memory()
                if reading.pending:
                    reading.report("reading", reading.computed, reading.length)
            for sequence, states, scores in scored:
                self._write(sequence, states, scores)
        return True

    def _drafted(self, writing: list[Sequence]) -> Work:
        """The answers, each with a draft of how it may go on."""
        work = []
        for sequence in writing:
            with self._ending([sequence]):
                sequence.draft(self._chunk - 1, len(writing))
                self._totals["drafted_tokens"] += len(sequence.drafted)
                work.append((sequence, sequence.total + len(sequence.drafted)))
        return work

    def _sweep(self) -> None:
        """Those whom nobody waits for leave."""
        for sequence in [sequence for sequence in self._active if sequence.stopped]:
            sequence.answer.finish = "cancelled"
            self._leave(sequence)
        with self._lock:
            gone = [sequence for sequence in self._waiting if sequence.stopped]
            for sequence in gone:
                self._waiting.remove(sequence)
        for sequence in gone:
            sequence.answer.finish = "cancelled"
            sequence.end()

    def _admit(self) -> None:
        """Those whose turn it is and who fit become active; the rest are told their place."""
        if not self._waiting:
            return
        with self._lock:
            order = in_turn(self._waiting, client_of, self._admitted)
            while order and self._fits(order[0]):
                sequence = order.pop(0)
                self._waiting.remove(sequence)
                self._active.append(sequence)
                self._admitted = self._served(self._admitted, sequence, client_of)
        for place, sequence in enumerate(order, start=1):
            if sequence.place != place:
                sequence.place = place
                sequence.report("waiting", place)

    def _fits(self, sequence: Sequence) -> bool:
        sequence.reserved = min(sequence.most, sequence.total + HEADROOM)
        sequence.nbytes = self._bytes(sequence, sequence.reserved)
        return not self._active or self._used() + sequence.nbytes <= self._memory

    def _begin(self, sequence: Sequence) -> bool:
        """Give the sequence its cache before its first chunk, with what is computed already; False if that fails."""
        if sequence.begun:
            return True
        with self._ending([sequence]):
            sequence.cache = self._cache_for(sequence)
            sequence.begun = True
            sequence.nbytes = max(sequence.nbytes, sequence.cache.nbytes)
            self._pool.shrink(self._memory - self._used())
            if not sequence.began_at:
                sequence.began_at, sequence.cached = time.perf_counter(), sequence.computed
                self._totals["prompt_tokens"] += sequence.length
                self._totals["cached_tokens"] += sequence.cached
                self._totals["cache_hits"] += sequence.cached > 0
        return sequence.begun

    def _cache_for(self, sequence: Sequence) -> SequenceCache:
        running = [other.kept() for other in self._active if other.begun]
        match = self._pool.best(sequence.sharable(), running)
        found = None
        if match is not None:
            if match.shared > match.length:  # the next who begins like these two can go back to there
                self._also_mark(sequence, match.shared)
            room = self._memory - self._used()
            found = self._pool.draw(match, sequence.client, room, sequence.reserved)
        cache = found or SequenceCache.for_model(self._model.config, dtype=self._dtype)
        cache.reserve(sequence.reserved)
        cache.mark(sequence.marks)
        return cache

    def _also_mark(self, sequence: Sequence, place: int) -> None:
        before = sequence.marks, sequence.nbytes
        sequence.mark((place,))
        sequence.nbytes = self._bytes(sequence, sequence.reserved)
        if self._used() > self._memory:
            sequence.marks, sequence.nbytes = before

    def _lane(self, sequence: Sequence) -> Hashable:
        """Long prompts of a client take turns with its short ones, which need one chunk only."""
        return sequence.client, sequence.pending <= self._chunk

    def _served(self, served: Served, sequence: Sequence, lane: Lane) -> Served:
        """Note whose turn it was; lanes that are empty are forgotten."""
        present = {lane(other) for other in [*self._active, *self._waiting]}
        noted = {**served, lane(sequence): self._totals["steps"] + 1}
        return {key: when for key, when in noted.items() if key in present}

    def _grow(self) -> None:
        """Set more memory aside for answers that got longer than expected."""
        for sequence in list(self._active):
            if sequence.total > sequence.reserved and sequence in self._active:
                self._set_aside(sequence)

    def _set_aside(self, sequence: Sequence) -> None:
        reserved = min(sequence.most, sequence.total + max(HEADROOM, sequence.total // 8))
        needed = self._bytes(sequence, reserved)
        while self._used() - sequence.nbytes + needed > self._memory:
            if len(self._active) == 1:
                sequence.answer.finish = "length"
                return self._leave(sequence)
            youngest = self._active[-1]
            self._send_back(youngest)
            if youngest is sequence:
                return None
        sequence.reserved, sequence.nbytes = reserved, needed
        self._pool.shrink(self._memory - self._used())
        sequence.cache.reserve(reserved)
        return None

    def _send_back(self, sequence: Sequence) -> None:
        """To the head of the queue; what is computed of it is kept as long as there is memory."""
        self._keep(sequence)
        with self._lock:
            self._waiting.insert(0, sequence)

    def _write(self, sequence: Sequence, states: Tensor, scores: Tensor) -> None:
        with self._ending([sequence]):
            before = sequence.answer.written
            chosen = sequence.take(states, scores)
            written = sequence.answer.written - before  # a token that ends the turn is chosen, not written
            self._speed.append((time.perf_counter(), written))
            self._totals["completion_tokens"] += written
            self._totals["accepted_tokens"] += chosen - 1
            if sequence.answer.finish is not None:
                self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self._keep(sequence)
        sequence.end()

    def _keep(self, sequence: Sequence) -> None:
        """Take it out of the active ones; what is computed may serve another."""
        self._active.remove(sequence)
        if sequence.computed >= LEAST:
            self._pool.put(sequence.kept())
        sequence.forget()
        self._pool.shrink(self._memory - self._used())

    @contextmanager
    def _ending(self, sequences: list[Sequence]) -> Iterator[None]:
        """What goes wrong inside ends these sequences and nothing else; their caches are not trusted any more."""
        try:
            yield
        except GemmaError as error:
            self._fail(sequences, error)
        except MemoryError:
            self._fail(sequences, _no_memory())
        except Exception as error:
            logger.exception("A step failed")
            short = isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
            self._fail(
                sequences,
                _no_memory() if short else ModelError(f"The model failed: {error!r}.", "The server's log says more."),
            )

    def _fail(self, sequences: list[Sequence], error: GemmaError) -> None:
        for sequence in sequences:
            if sequence in self._active:
                self._active.remove(sequence)
                sequence.forget()
                sequence.outbox.fail(error)

    def _used(self) -> int:
        return sum(sequence.nbytes for sequence in self._active)

    def _bytes(self, sequence: Sequence, positions: int) -> int:
        dtype = self._dtype or self._model.norm.weight.dtype
        return cache_bytes(self._model.config, positions, chunk=self._chunk, marks=sequence.marks, dtype=dtype)


def _no_memory() -> OutOfMemory:
    return OutOfMemory("The memory of this machine is used up.", "Use a smaller model, or lower cache_memory.")


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
