"""``gemma.map``: order, failures, several at a time, interrupt and resume, Dask."""

import threading
from typing import Literal

import pandas as pd
import pytest

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.mapping import Bar, Mapped, MapStopped
from jupyter_gemma.types import Chunk


@pytest.fixture
def gemma(client) -> Gemma:
    """Answers with the question's words in capitals; asks side by side are counted."""
    client.now, client.most, client.lock = 0, 0, threading.Lock()

    def stream(request, hangup=None):
        with client.lock:
            client.requests.append(request)
            client.now += 1
            client.most = max(client.most, client.now)
        text = request.messages[-1].text
        try:
            if client.gate is not None:
                client.gate(text)
            if "bad" in text:
                raise RequestError("It is bad.")
            yield Chunk(text=text.upper())
            yield Chunk(finish="stop")
        finally:
            with client.lock:
                client.now -= 1

    client.gate = None
    client.stream = stream
    return Gemma(client)


def test_order_and_place(gemma, client):
    done = gemma.map(["one", "two", "three"], "Say {}!", show=False)
    assert list(done) == ["SAY ONE!", "SAY TWO!", "SAY THREE!"]
    assert len(done) == 3
    assert done[1] == "SAY TWO!"
    assert list(gemma.map(["one"], "Say it.", show=False)) == ["ONESAY IT."]


def test_a_series_keeps_its_index(gemma):
    done = gemma.map(pd.Series(["a", "b"], index=["x", "y"]), "{}", show=False)
    assert done.series.to_dict() == {"x": "A", "y": "B"}


def test_several_at_a_time(gemma, client):
    together = threading.Barrier(4, timeout=20)
    client.gate = lambda text: together.wait()
    assert len(gemma.map([f"n{number}" for number in range(8)], "{}", concurrency=4, show=False).answers) == 8
    assert client.most == 4


def test_failures_are_collected_and_asked_again(gemma, client):
    done = gemma.map(["good", "bad one", "fine"], "{}", show=False)
    assert list(done) == ["GOOD", None, "FINE"]
    assert str(done.failures[1]) == "It is bad."
    assert repr(done) == "<Mapped 2 of 3 answered, 1 failed>"
    done.values[1] = "better"
    assert list(done.resume()) == ["GOOD", "BETTER", "FINE"]
    assert done.failures == {}
    assert len(client.requests) == 4


def test_an_answer_of_the_wrong_form_is_a_failure(gemma):
    done = gemma.map(["a", "c"], "{}", schema=Literal["A", "B"], show=False, model="big", system="")
    assert list(done) == ["A", None]
    assert "none of the choices" in str(done.failures[1])


def test_an_interrupt_keeps_what_came_and_can_be_resumed(gemma, client, monkeypatch):
    from jupyter_gemma.notebook import mapping

    stopping = threading.Event()

    def gate(text):
        if text != "n0":
            stopping.wait(20)

    client.gate = gate
    waits = mapping.wait

    def interrupted(futures, timeout, return_when):
        done = waits(futures, timeout=20, return_when=return_when)
        if any(future.done() for future in futures) and not stopping.is_set():
            stopping.set()
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(mapping, "wait", interrupted)
    with pytest.raises(MapStopped) as stopped:
        gemma.map([f"n{number}" for number in range(40)], "{}", concurrency=2, show=False)
    result = stopped.value.result
    assert 0 in result.answers
    assert len(result.answers) < 40
    assert "resume" in "".join(stopped.value._render_traceback_())
    missing, before = len(result.missing), len(client.requests)
    assert result.resume().missing == []
    assert list(result) == [f"N{number}" for number in range(40)]
    assert len(client.requests) - before <= missing


def test_running_the_cell_again_takes_what_was_answered(gemma, client):
    gemma.map(["a", "b"], "{}", show=False)
    gemma.map(["a", "b", "c"], "{}", show=False)
    assert len(client.requests) == 3


def test_a_foreign_error_ends_the_map(gemma, client):
    def gate(text):
        raise ZeroDivisionError

    client.gate = gate
    with pytest.raises(ZeroDivisionError):
        gemma.map(["a", "b"], "{}", show=False)


def test_concurrency_has_bounds(gemma):
    with pytest.raises(BadOption, match="concurrency cannot be 0"):
        gemma.map(["a"], "{}", concurrency=0, show=False)


def test_progress_in_words(capsys, gemma):
    done = Mapped(["a", "b", "c"])
    assert Bar(3, True).words(done) == "0 of 3"
    done.failures[1] = RequestError("no")
    assert Bar(3, True).words(done).startswith("1 of 3, 1 failed")
    gemma.map(["a"], "{}")
    assert capsys.readouterr().err.endswith("1 of 1   \n")


@pytest.fixture
def workers(gemma, monkeypatch):
    """What a Dask worker would ask is asked by the fake client."""
    monkeypatch.setattr("jupyter_gemma.client.Client", lambda settings: gemma.asker.client)


@pytest.mark.usefixtures("workers")
def test_a_dask_bag_and_series(gemma):
    import dask.bag
    import dask.dataframe

    bag = dask.bag.from_sequence(["a", "b", "c"], npartitions=2)
    assert gemma.map(bag, "Say {}").compute(scheduler="synchronous") == ["SAY A", "SAY B", "SAY C"]
    series = dask.dataframe.from_pandas(pd.Series(["a", "b"], index=[5, 6], name="word"), npartitions=2)
    assert gemma.map(series, "{}").compute(scheduler="synchronous").to_dict() == {5: "A", 6: "B"}
    with pytest.raises(RequestError, match="It is bad"):
        gemma.map(dask.bag.from_sequence(["bad"]), "{}").compute(scheduler="synchronous")
    with pytest.raises(BadOption, match="no option"):
        gemma.map(bag, "{}", modle="x")
