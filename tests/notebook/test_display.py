"""Answers on display: one display, few updates, the last always; what was sent; terminals."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from IPython.utils.capture import capture_output
from PIL import Image

from jupyter_gemma.errors import UnknownModel
from jupyter_gemma.notebook import display
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.bundle import bundle
from jupyter_gemma.notebook.display import NotebookView, TerminalView, collect, draft_of, view_here
from jupyter_gemma.notebook.items import Item
from jupyter_gemma.types import Chunk, ImagePart, Progress, Usage

USAGE = Usage(text_tokens=12, image_tokens=48, completion_tokens=30, decode_seconds=0.5)


@pytest.fixture
def png() -> bytes:
    return display.thumbnail(_png())


def _png() -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def test_thumbnails_are_small(png):
    import io

    assert Image.open(io.BytesIO(png)).size == (85, 64)
    assert len(png) < 2000


def test_bundle_of_a_finished_answer(png):
    answer = Answer(
        "**Up** <b>", usage=USAGE, model="demo", finish="stop", sent=("fig (picture 640 × 480)",), thumbnails=(png,)
    )
    data = bundle(replace(answer, notice="Often wrong."))
    assert data["text/plain"].split("\n\n") == [
        "**Up** <b>",
        "[sent fig (picture 640 × 480) · 12 text + 48 image tokens, 30 answered · 60 tokens/s · demo]",
        "[Often wrong.]",
    ]
    markdown = data["text/markdown"]
    assert markdown.startswith("**Up** < b>\n\n![sent](data:image/png;base64,")
    assert markdown.endswith("<sub>Often wrong.</sub>")


def test_bundle_of_an_answer_to_come():
    assert bundle(Answer(), "loading demo 40%")["text/markdown"] == "*loading demo 40%*"
    assert bundle(Answer("It "), "")["text/plain"] == "It "


@pytest.mark.parametrize(("finish", "words"), [("cancelled", "stopped"), ("length", "--max-tokens"), ("stop", "demo")])
def test_how_it_ended(finish, words):
    assert words in bundle(Answer("It", finish=finish, model="demo"))["text/plain"]


def test_a_full_context_is_not_blamed_on_max_tokens():
    """USAGE has 60 tokens of a prompt and 30 of an answer."""
    told = {
        room: bundle(Answer("It", usage=USAGE, finish="length", record={"context_length": room}))["text/plain"]
        for room in (90, 91)
    }
    assert "context of 90 tokens is full" in told[90]
    assert "--new" in told[90]
    assert "--max-tokens" not in told[90]
    assert "--max-tokens" in told[91]


def test_names_of_objects_cannot_smuggle_html():
    assert "<img" not in bundle(Answer(finish="stop", sent=("d['<img src=x>'] (int)",)))["text/markdown"]


def test_draft_knows_what_is_sent():
    items = [("fig", Item((ImagePart(_png()),), "picture 640 × 480")), ("", Item((), ""))]
    draft = draft_of(items)
    assert draft.sent == ("fig (picture 640 × 480)",)
    assert len(draft.thumbnails) == 1


def test_one_display_at_most_ten_updates_a_second_and_the_last_one(shell):
    now = [0.0]
    chunks = [Chunk(text=f"{step} ") for step in range(100)]

    def ticking():
        for chunk in chunks:
            now[0] += 0.01
            yield chunk

    with capture_output() as captured:
        collect(ticking(), Answer(), NotebookView(clock=lambda: now[0]))
    outputs = captured.outputs
    assert 9 <= len(outputs) <= 13
    assert len({output.transient["display_id"] for output in outputs}) == 1
    assert outputs[-1].data["text/plain"].startswith("".join(chunk.text for chunk in chunks))
    assert [output.data["text/plain"] for output in outputs] == sorted(
        (output.data["text/plain"] for output in outputs), key=len
    )


def test_progress_thinking_then_text(shell):
    steps = [
        Chunk(progress=Progress("loading demo", 4, 10)),
        Chunk(progress=Progress("waiting")),
        Chunk(thinking="Hm."),
        Chunk(text="Yes."),
        Chunk(finish="stop", usage=USAGE),
    ]
    clock = iter(range(100))
    with capture_output() as captured:
        answer = collect(iter(steps), Answer(), NotebookView(clock=lambda: float(next(clock))))
    shown = [output.data["text/markdown"] for output in captured.outputs]
    assert shown[:3] == ["*loading demo 40%*", "*waiting*", "*thinking…*"]
    assert shown[3].endswith("</details>\n\nYes.")
    assert answer.thinking == "Hm."
    assert answer.usage == USAGE


def test_an_answer_is_shown_once_in_its_cell_and_again_later(shell, monkeypatch):
    with capture_output():
        answer = collect(iter([Chunk(text="Yes.")]), Answer(), NotebookView())
    format_of = shell.display_formatter.format
    assert format_of(answer) == ({}, {})
    shell.execution_count += 1
    assert format_of(answer)[0]["text/plain"].startswith("Yes.")


def test_terminal_writes_what_is_new(shell, capsys):
    collect(iter([Chunk(text="It "), Chunk(text="rises.")]), Answer(notice="Often wrong."), TerminalView())
    assert re.fullmatch(r"It rises\.\n(\[.*\]\n)?\[Often wrong\.\]\n", capsys.readouterr().out)


def test_terminal_leaves_an_error_to_tell_its_story(shell, capsys):
    def failing():
        raise UnknownModel("There is no model 'nope' here.")
        yield

    with pytest.raises(UnknownModel):
        collect(failing(), Answer(model="nope", notice="Often wrong."), TerminalView())
    assert capsys.readouterr().out == "\n"


def test_the_view_for_a_kernel_a_terminal_and_a_program(shell, monkeypatch):
    assert isinstance(view_here(), TerminalView)
    monkeypatch.setattr(display, "_shell", lambda: SimpleNamespace(kernel=object(), execution_count=1))
    assert isinstance(view_here(), NotebookView)
    monkeypatch.setattr(display, "_shell", lambda: None)
    assert isinstance(view_here(), display.SilentView)
