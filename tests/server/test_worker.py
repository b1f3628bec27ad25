"""The worker: order, residency, cancelling, errors, and what it says about itself."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import BadCheckpoint, BadImage, GemmaError, OutOfMemory, ServerError, UnknownModel
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
    assert worker.status() == {"state": "empty", "model": "", "progress": None, "queue": 0, "error": None}
    chunks = await collect(worker.answer(ask()))
    assert chunks[0].progress == Progress("loading a")
    assert text_of(chunks) == "Hi there"
    assert chunks[-1].finish == "stop"
    assert worker.status()["state"] == "ready"
    assert worker.status()["model"] == "a"
    assert not any(chunk.progress for chunk in await collect(worker.answer(ask())))


async def test_questions_are_answered_one_by_one_in_their_order(make_worker: MakeWorker) -> None:
    active = 0
    order: list[str] = []

    class Watching(EchoEngine):
        def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
            nonlocal active
            active += 1
            assert active == 1
            order.append(request.messages[0].text)
            yield from super().stream(request, cancel)
            active -= 1

    worker = make_worker({"a": Watching(delay=0.001)})
    jobs = [worker.answer(ask(str(number))) for number in range(20)]
    answers = await asyncio.gather(*map(collect, jobs))
    assert order == [str(number) for number in range(20)]
    assert [text_of(chunks) for chunks in answers] == order


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


async def test_a_waiting_question_is_told_its_place(make_worker: MakeWorker) -> None:
    worker = make_worker({"a": EchoEngine(script=[LONG])})
    running = worker.answer(ask())
    await first_text(running)
    waiting = [worker.answer(ask()), worker.answer(ask())]
    assert worker.status()["state"] == "busy"
    worker.cancel(running)
    places = [[chunk.progress.phase for chunk in await collect(job) if chunk.progress] for job in waiting]
    assert places == [
        ["waiting for 1 earlier question"],
        ["waiting for 2 earlier questions", "waiting for 1 earlier question"],
    ]


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
            raise KeyError("secret")

    worker = make_worker({"a": Buggy()})
    with caplog.at_level(logging.ERROR), pytest.raises(GemmaError, match="internal error") as caught:
        await collect(worker.answer(ask()))
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text
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
    worker = make_worker({"a": engine})
    running, queued = worker.answer(ask()), worker.answer(ask())
    await first_text(running)
    await asyncio.to_thread(worker.close)
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
