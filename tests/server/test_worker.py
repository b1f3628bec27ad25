"""The worker: order, residency, cancelling, errors, and what it says about itself."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import (
    BadCheckpoint,
    BadImage,
    GemmaError,
    OutOfMemory,
    ServerBusy,
    ServerError,
    UnknownModel,
)
from jupyter_gemma.server import worker as worker_module
from jupyter_gemma.server.worker import AHEAD, Job, Worker
from jupyter_gemma.types import Chunk, Message, ModelCard, Progress, ProgressCallback, Request, TextPart

pytestmark = pytest.mark.anyio
MakeWorker = Callable[..., Worker]
LONG = Reply(tuple(Chunk(text=str(number)) for number in range(10_000)), delay=0.002)


def ask(text: str = "Hi there", model: str = "") -> Request:
    return Request((Message("user", (TextPart(text),)),), model=model)


async def collect(job: Job) -> list[Chunk]:
    chunks = []
    while (chunk := await job.next()) is not None:
        chunks.append(chunk)
    return chunks


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def first_text(job: Job) -> None:
    while not (chunk := await job.next()) or not chunk.text:
        assert chunk is not None, "the answer ended without text"


class GateLoader:
    """A loader that reports progress, then waits until it may go on."""

    def __init__(self, engine: EchoEngine) -> None:
        self.engine = engine
        self.loading = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, name: str, progress: ProgressCallback) -> EchoEngine:
        progress(Progress("reading weights", 1, 2))
        self.loading.set()
        assert self.go_on.wait(10)
        return self.engine


async def test_an_answer_loads_the_default_model_first(make_worker: MakeWorker) -> None:
    worker = make_worker({"a": EchoEngine(), "b": EchoEngine()})
    nothing = {"progress": None, "running": 0, "queue": 0, "error": None, "engine": None}
    assert worker.status() == {"state": "empty", "model": "", **nothing}
    chunks = await collect(worker.answer(ask()))
    assert chunks[0].progress == Progress("loading a")
    assert text_of(chunks) == "Hi there"
    assert chunks[-1].finish == "stop"
    assert worker.status()["state"] == "ready"
    assert worker.status()["model"] == "a"
    assert not any(chunk.progress for chunk in await collect(worker.answer(ask())))


async def test_questions_are_answered_side_by_side(make_worker: MakeWorker) -> None:
    together = threading.Barrier(20, timeout=20)

    class Meeting(EchoEngine):
        def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
            together.wait()
            yield from super().stream(request, cancel)

    worker = make_worker({"a": Meeting()})
    jobs = [worker.answer(ask(str(number))) for number in range(20)]
    answers = await asyncio.gather(*map(collect, jobs))
    assert [text_of(chunks) for chunks in answers] == [str(number) for number in range(20)]


async def test_who_waits_sees_the_loading_and_its_place(make_worker: MakeWorker) -> None:
    loader = GateLoader(EchoEngine())
    worker = make_worker({"a": loader.engine}, loader)
    first, second = worker.answer(ask()), worker.answer(ask())
    await asyncio.to_thread(loader.loading.wait)
    late = worker.answer(ask())
    status = worker.status()
    assert status["state"] == "loading"
    assert status["model"] == "a"
    assert status["progress"] == {"phase": "reading weights", "done": 1, "total": 2}
    assert status["queue"] == 2
    loader.go_on.set()
    weights = Progress("reading weights", 1, 2)
    for job in (first, second, late):
        assert weights in [chunk.progress for chunk in await collect(job)]


async def test_another_model_waits_for_the_running_answers_and_is_told_its_place(make_worker: MakeWorker) -> None:
    first, second = EchoEngine(script=[LONG]), EchoEngine()
    worker = make_worker({"a": first, "b": second})
    running = worker.answer(ask())
    await first_text(running)
    switching, behind = worker.answer(ask(model="b")), worker.answer(ask(model="a"))
    assert await switching.next() == Chunk(progress=Progress("waiting for the answers of a"))
    assert worker.status()["state"] == "busy"
    assert not first.closed.is_set()
    worker.cancel(running)
    jobs = (switching, behind)
    places = [[chunk.progress.phase for chunk in await collect(job) if chunk.progress] for job in jobs]
    assert places[0] == ["loading b"]
    # The one behind sees the loading of b, then waits for its answer.
    assert places[1][0] == "waiting for 1 earlier question"
    assert places[1][-1] == "loading a"
    assert worker.status()["model"] == "a"


async def test_a_cancelled_switch_leaves_the_resident_model(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[LONG])
    worker = make_worker({"a": engine, "b": EchoEngine()})
    running = worker.answer(ask())
    await first_text(running)
    switch = worker.answer(ask(model="b"))
    while (chunk := await switch.next()) and chunk.progress != Progress("waiting for the answers of a"):
        pass
    worker.cancel(switch)
    assert (await collect(switch))[-1].finish == "cancelled"
    assert worker.status()["model"] == "a"
    assert text_of(await collect(worker.answer(ask("still there")))) == "still there"
    worker.cancel(running)
    assert not engine.closed.is_set()


async def test_a_model_that_nobody_uses_is_unloaded(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[Reply((Chunk(text="a"),), delay=0.2)])
    worker = make_worker({"a": engine}, keep_alive=0.05)
    answer = worker.answer(ask())
    assert text_of(await collect(answer)) == "a"  # however long an answer takes, its model stays
    await asyncio.to_thread(engine.closed.wait, 10)
    assert engine.closed.is_set()
    assert worker.status()["state"] == "empty"


async def test_idle_time_counts_from_the_last_answer(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[LONG])
    worker = make_worker({"a": engine})
    await asyncio.sleep(0.02)
    assert worker.idle_seconds() >= 0.02
    job = worker.answer(ask())
    await first_text(job)
    assert worker.idle_seconds() == 0
    worker.cancel(job)
    await collect(job)
    assert worker.idle_seconds() < 5


async def test_more_jobs_than_there_may_be_are_refused(
    make_worker: MakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_JOBS", 2)
    worker = make_worker({"a": EchoEngine(script=[LONG, LONG])})
    jobs = [worker.answer(ask()), worker.answer(ask())]
    with pytest.raises(ServerBusy, match="2 questions"):
        worker.answer(ask())
    for job in jobs:
        worker.cancel(job)


async def test_another_model_replaces_the_resident_one(make_worker: MakeWorker) -> None:
    first, second = EchoEngine(), EchoEngine()
    worker = make_worker({"a": first, "b": second})
    await collect(worker.answer(ask(model="a")))
    await collect(worker.answer(ask(model="b")))
    assert first.closed.is_set()
    assert worker.status()["model"] == "b"
    assert not second.closed.is_set()


async def test_an_unknown_model_leaves_the_resident_one(make_worker: MakeWorker) -> None:
    engine = EchoEngine()
    worker = make_worker({"a": engine})
    await collect(worker.load(""))
    with pytest.raises(UnknownModel, match="'nope'"):
        await collect(worker.load("nope"))
    assert worker.status()["state"] == "ready"
    assert not engine.closed.is_set()


async def test_unloading_waits_for_the_answer_before(make_worker: MakeWorker) -> None:
    engine = EchoEngine(delay=0.001)
    worker = make_worker({"a": engine})
    answer, unload = worker.answer(ask("one two three")), worker.unload()
    assert text_of(await collect(answer)) == "one two three"
    await collect(unload)
    assert engine.closed.is_set()
    assert worker.status()["state"] == "empty"


async def test_a_failed_load_is_reported_and_can_be_tried_again(make_worker: MakeWorker) -> None:
    results: list[Any] = [BadCheckpoint("Truncated.", "Pull it again."), MemoryError(), EchoEngine()]

    def load(name: str, progress: ProgressCallback) -> EchoEngine:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, EchoEngine)
        return result

    worker = make_worker({"a": EchoEngine()}, load)
    with pytest.raises(BadCheckpoint, match="Truncated"):
        await collect(worker.answer(ask()))
    assert worker.status()["state"] == "error"
    assert worker.status()["error"]["code"] == "bad_checkpoint"
    with pytest.raises(OutOfMemory):
        await collect(worker.load(""))
    assert worker.status()["error"]["code"] == "out_of_memory"
    assert text_of(await collect(worker.answer(ask()))) == "Hi there"
    assert worker.status()["error"] is None


async def test_an_error_reaches_its_own_client_only(make_worker: MakeWorker) -> None:
    script = [Reply((Chunk(text="a"),), error=BadImage("Zero pixels.")), Reply((Chunk(text="b"),))]
    worker = make_worker({"a": EchoEngine(script=script)})
    failing, fine = worker.answer(ask()), worker.answer(ask())
    with pytest.raises(BadImage, match="Zero pixels"):
        await collect(failing)
    assert text_of(await collect(fine)) == "b"
    assert worker.status()["state"] == "ready"


async def test_a_bug_is_logged_and_told_without_its_inside(
    make_worker: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(EchoEngine):
        def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
            raise KeyError("sec" + "ret")

    worker = make_worker({"a": Buggy()})
    with caplog.at_level(logging.ERROR), pytest.raises(GemmaError, match="internal error") as caught:
        await collect(worker.answer(ask()))
    assert "secret" not in str(caught.value)
    assert "KeyError" in caplog.text
    assert "in stream" in caplog.text
    assert "secret" not in caplog.text  # it may be a piece of somebody's question
    assert worker.status()["state"] == "ready"


async def test_cancelling_stops_within_one_step(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[LONG])
    worker = make_worker({"a": engine})
    job = worker.answer(ask())
    await first_text(job)
    worker.cancel(job)
    steps = engine.steps
    chunks = await collect(job)
    assert chunks[-1].finish == "cancelled"
    assert engine.cancelled
    assert engine.steps <= steps + 1


async def test_a_cancelled_question_in_the_queue_is_never_asked(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[LONG])
    worker = make_worker({"a": engine})
    running = worker.answer(ask("first"))
    await first_text(running)
    queued = worker.answer(ask("second"))
    worker.cancel(queued)
    assert (await collect(queued))[-1].finish == "cancelled"
    worker.cancel(running)
    await collect(running)
    assert [request.messages[0].text for request in engine.requests] == ["first"]


async def test_cancelling_twice_or_after_the_end_is_harmless(make_worker: MakeWorker) -> None:
    worker = make_worker({"a": EchoEngine()})
    job = worker.answer(ask())
    await collect(job)
    worker.cancel(job)
    worker.cancel(job)
    assert text_of(await collect(worker.answer(ask()))) == "Hi there"


async def test_a_slow_reader_slows_the_engine_down(
    make_worker: MakeWorker, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    engine = EchoEngine(script=[Reply(LONG.chunks[:500])])
    worker = make_worker({"a": engine})
    await collect(worker.load(""))
    job = worker.answer(ask())
    await asyncio.to_thread(wait_until, lambda: engine.steps > AHEAD)
    assert engine.steps == AHEAD + 1
    assert text_of(await collect(job)) == "".join(map(str, range(500)))


async def test_closing_ends_every_question_and_the_engine(make_worker: MakeWorker) -> None:
    engine = EchoEngine(script=[LONG])
    worker = make_worker({"a": engine, "b": EchoEngine()})
    running, switching, queued = worker.answer(ask()), worker.answer(ask(model="b")), worker.answer(ask())
    await first_text(running)
    await asyncio.to_thread(worker.close)
    assert (await collect(switching))[-1].finish == "cancelled"
    assert (await collect(running))[-1].finish == "cancelled"
    assert (await collect(queued))[-1].finish == "cancelled"
    assert engine.closed.is_set()
    with pytest.raises(ServerError, match="stopping"):
        worker.answer(ask())


def test_a_reader_whose_loop_has_ended_does_not_block_the_next(make_worker: MakeWorker) -> None:
    engine = EchoEngine(ModelCard("a"), script=[LONG])
    worker = make_worker({"a": engine})

    async def leave() -> None:
        await first_text(worker.answer(ask("left")))

    async def stay() -> str:
        return text_of(await collect(worker.answer(ask("stays"))))

    asyncio.run(leave())
    assert asyncio.run(stay()) == "stays"
    assert engine.steps < 100
    assert [request.messages[0].text for request in engine.requests] == ["left", "stays"]
