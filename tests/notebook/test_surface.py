"""Chat, await, the accessor of pandas, and the view with buttons."""

import asyncio
import signal
import threading

import comm
import pandas as pd
import pytest
from IPython.utils.capture import capture_output

from jupyter_gemma.notebook import accessor
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.widget import WidgetView
from jupyter_gemma.types import Chunk


@pytest.fixture
def gemma(client) -> Gemma:
    return Gemma(client)


def test_a_chat_remembers_its_turns(gemma, client):
    chat = gemma.chat(model="big", system="Briefly.")
    chat("one", show=False)
    answer = chat("two", pd.DataFrame({"a": [1]}), show=False)
    assert [message.role for message in client.requests[-1].messages] == ["system", "user", "assistant", "user"]
    assert [turn.answer for turn in chat.turns][1] is answer
    assert repr(chat) == "<Chat of 2 turns>"
    chat.reset()
    chat("three", show=False)
    assert len(client.requests[-1].messages) == 2


def test_await(gemma):
    assert asyncio.run(gemma.acall("why?", model="big")).text == "It rises."


def test_cancelling_a_task_hangs_up(gemma, client):
    waiting, hung_up = threading.Event(), threading.Event()

    def stream(request, hangup=None):
        hangup.watch = None
        waiting.set()
        while not hangup.called:
            hung_up.wait(0.01)
        hung_up.set()
        yield Chunk(finish="cancelled")

    client.stream = stream

    async def ask():
        task = asyncio.create_task(gemma.acall("why?", model="big"))
        await asyncio.to_thread(waiting.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert hung_up.is_set()


@pytest.fixture
def with_accessor(gemma, monkeypatch):
    for kind in (pd.DataFrame, pd.Series):
        monkeypatch.setattr(kind, "gemma", property(accessor.GemmaAccessor), raising=False)
    monkeypatch.setattr(accessor, "process_gemma", lambda: gemma)


@pytest.mark.usefixtures("with_accessor")
def test_a_frame_asks_about_itself(client):
    frame = pd.DataFrame({"city": ["Rome", "Oslo"]})
    frame.gemma("Which columns are text?", model="big", show=False)
    assert "city" in client.requests[-1].messages[-1].text
    assert len(frame.gemma.map("{}", model="big", show=False)) == 2
    assert "Oslo" in client.requests[-1].messages[-1].text + client.requests[-2].messages[-1].text
    assert list(frame["city"].gemma.map("{}", model="big", show=False)) == ["It rises.", "It rises."]


def test_the_accessor_comes_when_pandas_is_there():
    import subprocess
    import sys

    code = (
        "import sys; from jupyter_gemma.notebook.accessor import register_accessor; register_accessor();"
        "assert 'pandas' not in sys.modules; import pandas; register_accessor(); register_accessor();"
        "print(type(pandas.DataFrame({'a': [1]}).gemma).__name__)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "GemmaAccessor"


def test_a_cell_has_the_accessor_after_pandas_was_imported(run):
    run("import pandas")
    assert run("hasattr(pandas.DataFrame, 'gemma')")


# -- buttons -----------------------------------------------------------------------------------------------------


class Plain:
    """A view that remembers."""

    def __init__(self):
        self.seen: list[str] = []

    def update(self, answer, status=""):
        self.seen.append(answer.text)

    def finish(self, answer):
        self.seen.append(answer.text)
        return answer


@pytest.fixture
def view(gemma, shell):
    return WidgetView(gemma.asker, Plain())


def test_buttons_stand_beside_an_ordinary_answer_and_leave_no_text(view, gemma):
    with capture_output() as captured:
        answer = gemma.asker.ask([("", "why?")], _options(), view)
    assert view._inner.seen[-1] == answer.text == "It rises."
    (shown,) = captured.outputs
    assert shown.data["text/plain"] == ""
    assert "application/vnd.jupyter.widget-view+json" in shown.data
    assert [view._buttons[name].disabled for name in ("Stop", "Copy", "Regenerate")] == [True, False, False]


def test_stop_interrupts_while_the_answer_comes(view, monkeypatch):
    sent = []
    monkeypatch.setattr("os.kill", lambda process, number: sent.append(number))
    with capture_output():
        view.update(Answer("It"))
        view._buttons["Stop"].click()
        view.finish(Answer("It rises.", finish="stop"))
    view.stop()
    assert sent == [signal.SIGINT]


def test_regenerate_takes_the_next_seed_and_keeps_both(view, gemma, client):
    with capture_output():
        answer = gemma.asker.ask([("", "why?")], _options(seed=7), view)
        view._buttons["Regenerate"].click()
        view._buttons["Regenerate"].click()
    assert [request.sampling.seed for request in client.requests] == [7, 8, 9]
    assert [each.text for each in (answer, *view.again)] == ["It rises."] * 3
    assert view.again[1].record["sampling"]["seed"] == 9
    shown = [output["data"]["text/markdown"].partition("\n")[0] for output in view._below.outputs]
    assert shown == ["It rises.", "It rises."]


def _copied(view) -> str:
    """The script of a click on Copy."""
    with capture_output() as captured:
        view._buttons["Copy"].click()
    (script,) = [each.data["application/javascript"] for each in captured.outputs]
    return script


def test_copy_writes_to_the_clipboard_without_breaking_out(view):
    with capture_output():
        view.finish(Answer("</script><b>", finish="stop"))
    script = _copied(view)
    assert script.startswith("navigator.clipboard.writeText(")
    assert "</script>" not in script


def test_copy_takes_the_newest_answer(view, gemma, client):
    with capture_output():
        gemma.asker.ask([("", "why?")], _options(seed=7), view)
        client.chunks = [Chunk(text="It falls."), Chunk(finish="stop")]
        view._buttons["Regenerate"].click()
    assert _copied(view) == 'navigator.clipboard.writeText("It falls.")'


class FakeComm(comm.DummyComm):
    """Keeps what it would send."""

    def __init__(self, **fields):
        self.sent: list[tuple[str, dict]] = []
        super().__init__(**fields)

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        self.sent.append((msg_type, data))


@pytest.fixture
def comms(monkeypatch, shell) -> list[FakeComm]:
    """The comms for cells that get made, in a kernel whose front end names the cell."""
    made: list[FakeComm] = []
    plain = comm.create_comm

    def create(**fields):
        if fields["target_name"] != "jupyter_gemma.cells":
            return plain(**fields)
        made.append(FakeComm(**fields))
        return made[-1]

    monkeypatch.setattr(comm, "create_comm", create)
    monkeypatch.setattr(type(shell), "get_parent", lambda self: {"metadata": {"cellId": "a"}}, raising=False)
    return made


HERE = {"content": {"data": {"here": True}}}


def test_without_a_front_end_that_can_there_is_no_insert(view, comms):
    with capture_output():
        view.finish(Answer("It rises.", finish="stop"))
    assert [each.sent for each in comms] == [[("comm_open", {"cell": "a"})]]
    assert [button.description for button in view._row.children] == ["Stop", "Copy", "Regenerate"]


def test_a_program_that_names_no_cell_is_not_asked(view, comms, shell, monkeypatch):
    monkeypatch.setattr(type(shell), "get_parent", lambda self: {"metadata": {}}, raising=False)
    with capture_output():
        view.finish(Answer("It rises.", finish="stop"))
    assert comms == []


@pytest.mark.parametrize(
    ("text", "cell_type", "source"),
    [
        ("So:\n```python\nx = 1\n```", "code", "x = 1"),
        ("It ![rises](http://host/p.png).", "markdown", "It [rises](http://host/p.png)."),
    ],
)
def test_insert_places_the_newest_answer_in_a_cell_below(view, gemma, client, comms, text, cell_type, source):
    with capture_output():
        view.update(Answer("It"))
        comms[0].handle_msg(HERE)
        insert = view._row.children[-1]
        assert (insert.description, insert.disabled) == ("Insert cell", True)
        gemma.asker.ask([("", "why?")], _options(seed=7), view)
        client.chunks = [Chunk(text=text), Chunk(finish="stop")]
        view._buttons["Regenerate"].click()
        assert not insert.disabled
        insert.click()
    asked = {"cell": "a", "cell_type": cell_type, "source": source}
    assert comms[1].sent == [("comm_open", asked), ("comm_close", {})]


def _options(**fields):
    from jupyter_gemma.notebook.options import Options

    return Options(model="big", **fields)


def test_the_setting_switches_buttons_on(run, magics):
    run("%config GemmaMagics.widgets = True")
    assert isinstance(magics._view(), WidgetView)
