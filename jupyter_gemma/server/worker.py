"""The worker: one thread that owns the one engine and does everything slow, first come, first served.

The event loop hands it jobs and reads their chunks; nothing here knows HTTP. Answering in one thread keeps the engine
free of locks; an engine that batches changes :meth:`Worker._run` only.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from jupyter_gemma.errors import GemmaError, OutOfMemory, ServerError
from jupyter_gemma.types import Chunk, Engine, EngineLoader, ModelCard, Progress, Request

logger = logging.getLogger(__name__)

# Chunks an engine may be ahead of a client that reads slowly.
AHEAD = 64
CLOSE_SECONDS = 10.0


class Job:
    """One thing to do, seen from both sides: the worker puts chunks in, the event loop takes them out."""

    def __init__(self, action: Callable[[Job], object], loop: asyncio.AbstractEventLoop) -> None:
        self.action = action
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
    """Answers with the model that is asked for, loading it first if it is not the resident one.

    Args:
        load: builds an engine by model name, in the worker's thread.
        models: the cards of all models; read anew at each use, for models come and go.
        find: the card of one model ("": the default one); raises UnknownModel.
    """

    def __init__(
        self, load: EngineLoader, models: Callable[[], Sequence[ModelCard]], find: Callable[[str], ModelCard]
    ) -> None:
        self.models = models
        self._load = load
        self.find = find
        self._engine: Engine | None = None
        self._model = ""
        self._loading = ""
        self._progress: Progress | None = None
        self._error: GemmaError | None = None
        self._answering = False
        self._current: Job | None = None
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jupyter-gemma-worker", daemon=True)
        self._thread.start()

    # -- called in the event loop --

    def answer(self, request: Request) -> Job:
        """Queue a question. The job gives progress, then the answer; its last chunk has the finish."""
        return self._submit(lambda job: self._answer(job, request))

    def load(self, name: str) -> Job:
        """Queue loading a model ("": the default). The job gives progress."""
        return self._submit(lambda job: self._resident(name))

    def unload(self) -> Job:
        """Queue closing the engine. The job gives nothing."""
        return self._submit(lambda job: self._unload())

    def cancel(self, job: Job) -> None:
        """Stop a job within one step of the engine, or take it out of the queue."""
        with self._changed:
            queued = job in self._waiting
            if queued:
                self._waiting.remove(job)
        job.stop()
        if queued:
            job.put(Chunk(finish="cancelled"))
            job.end()

    def cancel_all(self) -> None:
        """Stop every job and take no more."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._current] if self._current else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)

    def close(self) -> None:
        """Stop every job, close the engine and end the thread."""
        self.cancel_all()
        self._thread.join(CLOSE_SECONDS)

    def status(self) -> dict[str, Any]:
        """What the worker does: ``state`` is empty, loading, ready, busy or error.

        ``model`` is the resident or loading one, ``queue`` the number of jobs that wait.
        """
        with self._changed:
            progress = self._progress
            return {
                "state": self._state(),
                "model": self._loading or self._model,
                "progress": {"phase": progress.phase, "done": progress.done, "total": progress.total}
                if progress
                else None,
                "queue": len(self._waiting),
                "error": self._error.to_wire()["error"] if self._error else None,
            }

    def _state(self) -> str:
        if self._loading:
            return "loading"
        if self._answering:
            return "busy"
        if self._engine is not None:
            return "ready"
        return "error" if self._error else "empty"

    def _submit(self, action: Callable[[Job], object]) -> Job:
        job = Job(action, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                raise ServerError("The model server is stopping.", "Ask again: the next call starts a new one.")
            ahead = len(self._waiting) + (self._current is not None)
            if ahead:
                job.hint(self._progress or _place(ahead))
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    # -- done in the thread --

    def _run(self) -> None:
        while (job := self._take()) is not None:
            error: GemmaError | None = None
            try:
                if not job.cancel.is_set():
                    job.action(job)
            except GemmaError as found:
                error = found
            except MemoryError:
                error = OutOfMemory("The memory of this machine is used up.", "Use a smaller model or max_memory.")
            except Exception:
                logger.exception("A job failed")
                error = GemmaError("The model server met an internal error.", "Its log says more.")
            self._done(error)
            job.end(error)
        self._unload()

    def _done(self, error: GemmaError | None) -> None:
        with self._changed:
            self._current = None
            if self._loading:  # still, so that is what failed
                self._error, self._loading, self._progress = error, "", None

    def _take(self) -> Job | None:
        """The next job, None when closed; those that move up are told."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            self._current = self._waiting.popleft()
            for place, job in enumerate(self._waiting, start=1):
                job.hint(_place(place))
            return self._current

    def _answer(self, job: Job, request: Request) -> None:
        engine = self._resident(request.model)
        self._answering = True
        try:
            for chunk in engine.stream(request, job.cancel):
                job.put(chunk)
        finally:
            self._answering = False

    def _resident(self, name: str) -> Engine:
        """The engine of model ``name``, loaded if need be; an unknown name leaves the resident one in place."""
        name = self.find(name).name
        if self._engine is not None and self._model == name:
            return self._engine
        self._unload()
        self._loading = name
        self._tell(Progress(f"loading {name}"))
        self._engine = self._load(name, self._tell)
        self._model = name
        self._loading, self._progress = "", None
        return self._engine

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


def _place(ahead: int) -> Progress:
    return Progress(f"waiting for {ahead} earlier question{'s' if ahead > 1 else ''}")
