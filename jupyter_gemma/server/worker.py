"""The worker: which model is resident, and who may use it now.

One thread takes jobs in their order and makes their model resident; each job then runs in a thread of its own, side by
side with the others, for the engine itself decides whose turn is next. A job that wants another model waits until the
running ones are done, and those behind it wait too. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from jupyter_gemma.errors import GemmaError, OutOfMemory, ServerBusy, ServerError
from jupyter_gemma.server.log import log_bug
from jupyter_gemma.types import Chunk, Engine, EngineLoader, EngineStatus, ModelCard, Progress, Request

logger = logging.getLogger(__name__)

# Chunks an engine may be ahead of a client that reads slowly.
AHEAD = 64
CLOSE_SECONDS = 10.0
# Jobs at once, waiting or running: each costs a thread. The engine's own limit is lower and speaks first.
MAX_JOBS = 1024

Action = Callable[[Engine, "Job"], object]


class Job:
    """One thing to do, seen from both sides: the worker puts chunks in, the event loop takes them out.

    ``model`` must be resident for it (None: no model must be). ``result`` is what the action returned.
    """

    def __init__(self, model: str | None, action: Action, loop: asyncio.AbstractEventLoop) -> None:
        self.model = model
        self.action = action
        self.result: Any = None
        self.cancel = threading.Event()
        self._loop = loop
        self._chunks: asyncio.Queue[Chunk | GemmaError | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)

    async def next(self) -> Chunk | None:
        """The next chunk; None after the last.

        Raises:
            GemmaError: what the worker met.
        """
        item = await self._chunks.get()
        if isinstance(item, GemmaError):
            raise item
        self._room.release()
        return item

    def put(self, chunk: Chunk) -> None:
        """Hand a chunk over, waiting while the reader is far behind; nobody reads those of a cancelled job."""
        self._room.acquire()
        if not self.cancel.is_set() or chunk.finish:
            self._send(chunk)

    def hint(self, progress: Progress) -> None:
        """Hand progress over, unless the reader is far behind."""
        if self._room.acquire(blocking=False):
            self._send(Chunk(progress=progress))

    def end(self, error: GemmaError | None = None) -> None:
        """Say that nothing follows."""
        self._send(error)

    def give_up(self) -> None:
        """Say that the job was cancelled before it began."""
        self._send(Chunk(finish="cancelled"))
        self._send(None)

    def stop(self) -> None:
        """Set the cancel event and wake a :meth:`put` that waits."""
        self.cancel.set()
        self._room.release(AHEAD)

    def _send(self, item: Chunk | GemmaError | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, item)
        except RuntimeError:
            self.cancel.set()  # the loop is closed: the reader is gone


class Worker:
    """Runs jobs with the model that they ask for, loading it first if it is not the resident one.

    Args:
        load: builds an engine by model name, in the worker's thread.
        models: the cards of all models; read anew at each use, for models come and go.
        find: the card of one model ("": the default one); raises UnknownModel.
        keep_alive: seconds without a job after which the model is unloaded; negative: never.
    """

    def __init__(
        self,
        load: EngineLoader,
        models: Callable[[], Sequence[ModelCard]],
        find: Callable[[str], ModelCard],
        keep_alive: float = -1.0,
    ) -> None:
        self.models = models
        self.find = find
        self._load = load
        self._keep_alive = keep_alive
        self._engine: Engine | None = None
        self._model = ""
        self._loading = ""
        self._progress: Progress | None = None
        self._error: GemmaError | None = None
        self._current: Job | None = None
        self._running: set[Job] = set()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._used = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="jupyter-gemma-worker", daemon=True)
        self._thread.start()

    # -- called in the event loop --

    def answer(self, request: Request) -> Job:
        """Queue a question. The job gives progress, then the answer; its last chunk has the finish."""
        return self._submit(request.model, lambda engine, job: _deliver(engine.stream(request, job.cancel), job))

    def transcribe(self, request: Request) -> Job:
        """Queue a transcription, see :meth:`jupyter_gemma.types.Engine.transcribe`."""
        return self._submit(request.model, lambda engine, job: _deliver(engine.transcribe(request, job.cancel), job))

    def call(self, model: str, action: Callable[[Engine], object]) -> Job:
        """Queue something short to do with a model's engine. The job gives progress, and its ``result``."""
        return self._submit(model, lambda engine, job: action(engine))

    def load(self, name: str) -> Job:
        """Queue loading a model ("": the default). The job gives progress."""
        return self.call(name, lambda engine: None)

    def unload(self) -> Job:
        """Queue closing the engine. The job gives nothing."""
        return self._submit(None, lambda engine, job: None)

    def cancel(self, job: Job) -> None:
        """Stop a job within one step of the engine, or take it out of the queue."""
        with self._changed:
            queued = job in self._waiting
            if queued:
                self._waiting.remove(job)
            job.stop()
            self._changed.notify_all()
        if queued:
            job.give_up()

    def cancel_all(self) -> None:
        """Stop every job and take no more."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *self._running, *([self._current] if self._current else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)

    def close(self) -> None:
        """Stop every job, close the engine and end the thread."""
        self.cancel_all()
        self._thread.join(CLOSE_SECONDS)

    def idle_seconds(self) -> float:
        """How long there has been nothing to do."""
        with self._changed:
            return 0.0 if self._busy() else time.monotonic() - self._used

    def status(self) -> dict[str, Any]:
        """What the worker does: ``state`` is empty, loading, ready, busy or error.

        ``model`` is the resident or loading one, ``running`` and ``queue`` count the jobs that are done and that wait,
        in the engine too; ``engine`` is the resident engine's :class:`~jupyter_gemma.types.EngineStatus`.
        """
        with self._changed:
            progress, engine = self._progress, self._engine
            found: dict[str, Any] = {
                "state": self._state(),
                "model": self._loading or self._model,
                "progress": asdict(progress) if progress else None,
                "running": len(self._running),
                "queue": len(self._waiting),
                "error": self._error.to_wire()["error"] if self._error else None,
            }
        details = engine.status() if engine else EngineStatus()
        found["queue"] += details.waiting
        return {**found, "engine": asdict(details) if engine else None}

    def _state(self) -> str:
        if self._loading:
            return "loading"
        if self._running:
            return "busy"
        if self._engine is not None:
            return "ready"
        return "error" if self._error else "empty"

    def _busy(self) -> bool:
        return bool(self._waiting or self._running or self._current)

    def _submit(self, model: str | None, action: Action) -> Job:
        job = Job(model, action, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise ServerError("The model server is stopping.", "Ask again: the next call starts a new one.")
            ahead = len(self._waiting) + (self._current is not None)
            if ahead + len(self._running) >= MAX_JOBS:
                raise ServerBusy(f"{MAX_JOBS} questions are being answered or wait already.", "Ask again later.")
            if ahead:
                job.hint(self._progress or _place(ahead))
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    # -- done in the thread --

    def _run(self) -> None:
        while (job := self._take()) is not None:
            error = _attempt(lambda job=job: self._begin(job))  # type: ignore[misc]
            with self._changed:
                self._current = None
                if self._loading:  # still, so that is what failed
                    self._error, self._loading, self._progress = error, "", None
            if error is not None:
                job.end(error)
        self._wait_for_quiet(lambda: False, CLOSE_SECONDS / 2)
        self._unload()

    def _take(self) -> Job | None:
        """The next job, None when closed; those that move up are told. Unloads a model that nobody has used."""
        with self._changed:
            while not (self._waiting or self._closed):
                if not self._changed.wait(self._patience()) and self._patience() == 0:
                    self._unload()
            if not self._waiting:
                return None
            self._current = self._waiting.popleft()
            for place, job in enumerate(self._waiting, start=1):
                job.hint(_place(place))
            return self._current

    def _patience(self) -> float | None:
        """Seconds until the model should go; None: it may stay until something changes."""
        if self._engine is None or self._keep_alive < 0 or self._running:
            return None
        return max(0.0, self._used + self._keep_alive - time.monotonic())

    def _begin(self, job: Job) -> None:
        """Make the job's model resident and run the job beside the others."""
        engine = self._engine if self._engine and job.model == self._model else self._switch(job)
        if job.cancel.is_set() or engine is None:
            job.give_up() if job.cancel.is_set() else job.end()
            return
        with self._changed:
            self._running.add(job)
            self._current = None
        threading.Thread(target=self._finish, args=(job, engine), name="jupyter-gemma-job", daemon=True).start()

    def _finish(self, job: Job, engine: Engine) -> None:
        def act() -> None:
            job.result = job.action(engine, job)

        error = _attempt(act)
        with self._changed:
            self._running.discard(job)
            self._used = time.monotonic()
            self._changed.notify_all()
        job.end(error)

    def _switch(self, job: Job) -> Engine | None:
        """The engine that ``job`` wants, loaded if need be once the running jobs are done; None: none any more."""
        name = None if job.model is None else self.find(job.model).name
        if self._engine is not None and name == self._model:
            return self._engine
        if self._running:
            job.hint(Progress(f"waiting for the answers of {self._model}"))
        self._wait_for_quiet(job.cancel.is_set)
        if job.cancel.is_set():
            return None
        self._unload()
        if name is None:
            return None
        self._loading = name
        self._tell(Progress(f"loading {name}"))
        self._engine = self._load(name, self._tell)
        self._model = name
        self._used = time.monotonic()
        self._loading, self._progress = "", None
        return self._engine

    def _wait_for_quiet(self, enough: Callable[[], bool], seconds: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: enough() or not self._running, seconds)

    def _unload(self) -> None:
        engine, self._engine, self._model, self._error = self._engine, None, "", None
        if engine is not None:
            engine.close()

    def _tell(self, progress: Progress) -> None:
        """Note how far loading is, and tell everyone who waits."""
        with self._changed:
            self._progress = progress
            for job in [*([self._current] if self._current else []), *self._waiting]:
                job.hint(progress)


def _deliver(chunks: Iterator[Chunk], job: Job) -> None:
    for chunk in chunks:
        job.put(chunk)


def _attempt(action: Callable[[], object]) -> GemmaError | None:
    """The error of ``action`` as one of ours, None if it has none; what only we can cause is logged."""
    try:
        action()
    except GemmaError as error:
        return error
    except MemoryError:
        return OutOfMemory("The memory of this machine is used up.", "Use a smaller model or max_memory.")
    except Exception as error:  # noqa: BLE001 - it is logged, and must not end the server
        log_bug(logger, error)
        return GemmaError("The model server met an internal error.", "Its log says more.")
    return None


def _place(ahead: int) -> Progress:
    return Progress(f"waiting for {ahead} earlier question{'s' if ahead > 1 else ''}")
