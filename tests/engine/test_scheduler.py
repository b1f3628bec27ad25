"""Who is computed when: fairness, admission, cancelling, and that company changes nothing."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gemma.engine.scheduler import in_turn, plan
from jupyter_gemma.engine.sequence import AHEAD
from jupyter_gemma.errors import ModelError, OutOfMemory, ServerBusy, ServerError
from jupyter_gemma.model.cache import cache_bytes
from jupyter_gemma.types import Constraint

LONG = "mean " * 2000  # 2000 tokens, four chunks
WORDS = Constraint("regex", "(a|b| ){8000}")  # an answer that goes on until max_tokens


# ------------------------------------------------------------------------------------------------ the plan


def waiting(client, begun=True, pending=1):
    return SimpleNamespace(client=client, begun=begun, pending=pending)


def client_of(sequence):
    return sequence.client


@given(st.lists(st.sampled_from("abc")), st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)))
def test_clients_take_turns(clients, served):
    sequences = [waiting(client) for client in clients]
    order = in_turn(sequences, client_of, served)
    assert sorted(map(id, order)) == sorted(map(id, sequences))
    for client in "abc":  # each client's own in their order
        own = [sequence for sequence in sequences if sequence.client == client]
        assert [sequence for sequence in order if sequence.client == client] == own
    first = order[: len(set(clients))]  # one of each before anybody's second, the longest unserved first
    assert len({sequence.client for sequence in first}) == len(first)
    assert [served.get(s.client, 0) for s in first] == sorted(served.get(s.client, 0) for s in first)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5))))
def test_a_step_is_all_answers_and_one_prompt(states):
    sequences = [waiting("", begun, pending) for begun, pending in states]
    writing, reading = plan(sequences, client_of, {})
    assert writing == [sequence for sequence in sequences if sequence.begun and sequence.pending == 1]
    rest = [sequence for sequence in sequences if sequence not in writing]
    assert reading is (rest[0] if rest else None)


# ------------------------------------------------------------------------------------------------ company


def test_company_changes_no_token(make_engine, ask, read):
    """Greedy answers alone, and all at once with prompts of other lengths being read beside them."""
    questions = [
        "Which column has the largest mean?\na: 1, 2\nb: 3, 4",
        "Explain this.",
        "stop " * 700,
        "Transcribe it.",
    ]
    requests = [ask(text, max_tokens=60, constraint=WORDS, client=str(n)) for n, text in enumerate(questions)]
    alone = [read(make_engine(), request).join().text for request in requests]
    engine = make_engine()
    together = [reader.join().text for reader in [read(engine, request) for request in requests]]
    assert together == alone
    assert all(len(text) >= 60 for text in alone)


def test_answers_share_each_pass(watched, engine, ask, read):
    watched.go = threading.Semaphore(0)
    readers = [read(engine, ask(f"Question {n}", max_tokens=10, constraint=WORDS)) for n in range(4)]
    watched.go.release(10**6)
    for reader in readers:
        reader.join()
    assert max(len(spans) for spans in watched.passes) == 4
    assert len(watched.passes) <= 20, "one pass for each token of each answer is 40"


def test_a_short_request_waits_three_chunks_at_most(watched, engine, ask, read, until):
    for round_, client in enumerate(("", "another"), start=1):
        watched.passes.clear()
        watched.go = threading.Semaphore(0)
        long = read(engine, ask(f"{client} {LONG}"))
        watched.reached.acquire()  # the first chunk is under way
        short = read(engine, ask(f"Short, {client}", client=client))
        until(lambda: engine.status().requests == 2 * round_)  # noqa: B023
        watched.go.release(3)
        assert short.got.wait(10)
        assert len(watched.passes) <= 3
        watched.go.release(10**6)
        long.join()
        short.join()


def test_chunks_are_no_longer_than_asked_for(watched, make_engine, ask, read):
    reader = read(make_engine(prefill_chunk=100), ask("mean " * 450)).join()
    assert [spans[0] for spans in watched.passes if spans[0] > 1] == [100] * 4 + [watched.passes[4][0]]
    progress = [chunk.progress for chunk in reader.chunks if chunk.progress]
    assert [p.done for p in progress] == [100, 200, 300, 400]
    assert {(p.phase, p.total) for p in progress} == {("reading", reader.chunks[-1].usage.prompt_tokens)}


# ------------------------------------------------------------------------------------------------ stopping


@pytest.mark.parametrize("way", ["cancel", "closing the stream"])
@pytest.mark.parametrize("prompt", [LONG, "Short"])
def test_stopping_costs_at_most_the_step_under_way(watched, engine, ask, way, prompt):
    watched.go = threading.Semaphore(2)
    cancel = threading.Event()
    stream = engine.stream(ask(prompt, max_tokens=100, constraint=WORDS), cancel)
    first = next(stream)
    assert first.finish is None
    for _ in range(3):  # two passes are done, the third has begun and is held
        watched.reached.acquire()
    if way == "cancel":
        cancel.set()
    else:
        stream.close()
    watched.go.release(10**6)
    if way == "cancel":
        assert list(stream)[-1].finish == "cancelled"
    engine.close()
    assert len(watched.passes) == 3


def test_closing_the_engine_ends_all_streams(watched, engine, ask, read):
    readers = [read(engine, ask(f"Question {n}", max_tokens=4000, constraint=WORDS)) for n in range(3)]
    for reader in readers:
        assert reader.got.wait(10)
    engine.close()
    assert [reader.join().finish for reader in readers] == ["cancelled"] * 3
    with pytest.raises(ServerError, match="unloaded"):
        next(engine.stream(ask("More"), threading.Event()))


def test_who_is_cancelled_in_the_queue_computes_nothing(watched, make_engine, ask, read, demo):
    engine = make_engine(cache_memory=budget(demo, 200))
    running = read(engine, ask("One", max_tokens=100, constraint=WORDS))
    assert running.got.wait(10)
    queued = read(engine, ask("Two " * 50, max_tokens=100, constraint=WORDS))
    queued.cancel.set()
    assert queued.join().finish == "cancelled"
    assert running.join().finish == "length"
    assert not [spans for spans in watched.passes if len(spans) > 1]


def test_a_caller_who_reads_slowly_holds_nobody_up(watched, engine, ask, read):
    slow = engine.stream(ask("Slow", max_tokens=200, constraint=WORDS), threading.Event())
    written = len(next(slow).text)
    other = read(engine, ask("Other", max_tokens=100, constraint=WORDS)).join()
    assert other.finish == "length"
    assert sum(map(len, watched.passes)) <= 100 + AHEAD + 5, "the slow one was computed far ahead of its reader"
    assert written + sum(len(chunk.text) for chunk in slow) >= 200


# ------------------------------------------------------------------------------------------------ failing


def test_scores_that_are_no_numbers_end_their_own_stream_only(watched, engine, ask, read):
    def spoil(scores):
        if len(scores) == 2 and len(watched.passes) > 20:
            scores[1] = math.nan
        return scores

    watched.spoil = spoil
    good = read(engine, ask("Good", max_tokens=100, constraint=WORDS))
    assert good.got.wait(10)
    bad = read(engine, ask("Bad", max_tokens=100, constraint=WORDS)).join()
    assert isinstance(bad.error, ModelError)
    assert good.join().finish == "length"
    assert engine.status().active == 0


def test_a_failing_pass_ends_those_in_it_and_the_engine_goes_on(watched, engine, ask, read):
    watched.fail = RuntimeError("a kernel is broken")
    failed = read(engine, ask("One")).join()
    assert isinstance(failed.error, ModelError)
    assert "a kernel is broken" in str(failed.error)
    watched.fail = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.")
    assert isinstance(read(engine, ask("One")).join().error, OutOfMemory)
    watched.fail = None
    assert read(engine, ask("One")).join().error is None


# ------------------------------------------------------------------------------------------------ memory


def budget(demo, positions):
    return cache_bytes(demo.config, positions, chunk=512, marks=(), dtype=torch.float32)


def test_admission_goes_by_memory_and_the_queue_is_told_its_place(watched, make_engine, ask, read, demo):
    """Room for two of five: never more than two in a pass, all get their answer, places count down."""
    engine = make_engine(cache_memory=budget(demo, 160))
    readers = [read(engine, ask("One", max_tokens=20, constraint=WORDS, client="a"))]
    assert readers[0].got.wait(10)
    readers += [read(engine, ask("Two", max_tokens=60, constraint=WORDS, client="b")) for n in range(4)]
    assert [reader.join().finish for reader in readers] == ["length"] * 5
    assert max(len(spans) for spans in watched.passes) == 2
    for reader in readers[1:]:
        places = [
            chunk.progress.done for chunk in reader.chunks if chunk.progress and chunk.progress.phase == "waiting"
        ]
        assert places == sorted(places, reverse=True)
    assert engine.status().cache_bytes <= engine.status().cache_limit


def test_a_prompt_beyond_the_whole_memory_is_refused(make_engine, ask, demo):
    engine = make_engine(cache_memory=budget(demo, 300))
    with pytest.raises(OutOfMemory, match=r"cache_memory is .* raise cache_memory"):
        next(engine.stream(ask(LONG), threading.Event()))


def test_a_full_queue_is_an_error(watched, make_engine, ask, read, until):
    engine = make_engine(max_waiting=2)
    watched.go = threading.Semaphore(0)
    readers = [read(engine, ask("One"))]
    watched.reached.acquire()
    readers += [read(engine, ask("More")) for _ in range(2)]
    until(lambda: engine.status().waiting == 2)
    with pytest.raises(ServerBusy, match=r"2 requests wait already\. Ask again later"):
        next(engine.stream(ask("Too much"), threading.Event()))
    watched.go.release(10**6)
    assert [reader.join().error for reader in readers] == [None] * 3


def test_the_youngest_makes_way_and_loses_nothing(watched, make_engine, ask, read, small):
    """Two answers grow until only one fits: the other is sent back, computed again, and is the same as alone."""
    watched.model = small
    requests = [ask(f"Question {n}", max_tokens=330, constraint=WORDS, client=str(n)) for n in range(2)]
    alone = [read(make_engine(), request).join().text for request in requests]
    watched.passes.clear()
    engine = make_engine(cache_memory=budget(small, 600))
    together = [reader.join() for reader in [read(engine, request) for request in requests]]
    assert [reader.text for reader in together] == alone
    assert [reader.finish for reader in together] == ["length"] * 2
    assert any(min(spans) == 1 and len(spans) == 2 for spans in watched.passes), "they never ran together"
    assert any(max(spans) > 100 for spans in watched.passes), "none was computed again"


def test_alone_and_out_of_memory_an_answer_ends_by_length(make_engine, ask, read, demo):
    reader = read(make_engine(cache_memory=budget(demo, 500)), ask("Go on", max_tokens=3000, constraint=WORDS)).join()
    assert reader.finish == "length"
    assert 200 < reader.chunks[-1].usage.completion_tokens < 3000


# ------------------------------------------------------------------------------------------------ figures


def test_the_status_counts(engine, ask, read):
    answers = [read(engine, ask("Hello", max_tokens=5, constraint=WORDS)).join().chunks[-1].usage for _ in range(2)]
    status = engine.status()
    assert (status.active, status.waiting, status.requests) == (0, 0, 2)
    assert status.prompt_tokens == sum(usage.prompt_tokens for usage in answers)
    assert status.completion_tokens == 10
    assert status.tokens_per_second > 0
    assert 0 < status.cache_bytes <= status.cache_limit
    assert torch.is_grad_enabled(), "the scheduler's inference mode stays in its thread"
