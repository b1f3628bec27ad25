"""The whole grammar in a shell that raises: every option and every slash command, and what is sent for it."""

import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from IPython.core.error import UsageError

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.commands import COMMANDS
from jupyter_gemma.notebook.options import FLAGS, FORMATS
from jupyter_gemma.notebook.preview import Preview
from jupyter_gemma.types import Chunk, Constraint

OBJECTS = {"type": "array", "items": {"type": "object"}}
# line -> what the request then has
OPTIONS = {
    "-w n": lambda r, a: r.messages[-1].text.startswith("3"),
    "--with n,n": lambda r, a: r.messages[-1].text.startswith("33"),
    "-o kept": lambda r, a: a.text == "It rises.",
    "--out kept": lambda r, a: a.text == "It rises.",
    "-f text": lambda r, a: "plain text" in r.messages[0].text,
    "-f code": lambda r, a: "Python code only" in r.messages[0].text,
    "-f json": lambda r, a: r.constraint == Constraint("json"),
    "-f html": lambda r, a: "HTML" in r.messages[0].text,
    "-f table": lambda r, a: r.constraint == Constraint("json_schema", OBJECTS),
    "--format markdown": lambda r, a: r.constraint is None and len(r.messages) == 1,
    "--schema list[int]": lambda r, a: r.constraint.value == {"type": "array", "items": {"type": "integer"}},
    '--schema Literal["a","b"]': lambda r, a: r.constraint == Constraint("choice", ["a", "b"]),
    "--schema City": lambda r, a: r.constraint.value["properties"]["name"]["type"] == "string",
    '--schema {"type": "integer"}': lambda r, a: r.constraint == Constraint("json_schema", {"type": "integer"}),
    "-m base": lambda r, a: r.model == "base",
    "--adapter stems": lambda r, a: r.adapter == "stems",
    "--model base": lambda r, a: r.model == "base",
    "-t 0": lambda r, a: r.sampling.temperature == 0 and r.sampling.seed is None,
    "--temperature 0.5": lambda r, a: r.sampling.temperature == 0.5 and r.sampling.seed is not None,
    "--max-tokens 9": lambda r, a: r.sampling.max_tokens == 9,
    "--seed 4": lambda r, a: r.sampling.seed == 4,
    "--think": lambda r, a: r.thinking,
    "--no-think": lambda r, a: not r.thinking,
    '--system "In French."': lambda r, a: r.messages[0].text == "In French.",
    "--image-tokens 280": lambda r, a: r.image_tokens == 280,
    "--rows 1": lambda r, a: len(r.messages) == 1,
    "--new": lambda r, a: len(r.messages) == 1,
    "--no-history": lambda r, a: len(r.messages) == 1,
    "--no-cache": lambda r, a: not a.cached,
    "--keep": lambda r, a: "why?" in a.record["inputs"][-1]["text"],
}


@pytest.fixture(autouse=True)
def variables(shell):
    from pydantic import BaseModel

    class City(BaseModel):
        name: str

    shell.user_ns.update(
        n=3,
        City=City,
        df=pd.DataFrame({"a": [1, 2]}),
        pixels=np.zeros((20, 30, 3), np.uint8),
        clip=(np.zeros(1600), 16000),
        long_clip=(np.zeros(8000 * 31), 8000),
    )


@pytest.mark.parametrize("line", OPTIONS)
@pytest.mark.parametrize("form", ["%gemma -m big {} why?", "%%gemma -m big {}\nwhy?"])
def test_every_option(run, client, shell, line, form):
    answer = run(form.replace("{}", line))
    assert isinstance(answer, Answer)
    assert OPTIONS[line](client.requests[-1], answer)
    assert client.requests[-1].messages[-1].text.endswith("why?")
    if line.startswith(("-o", "--out")):
        assert shell.user_ns["kept"] is answer


def test_every_option_is_in_the_table():
    missing = {name for flag in FLAGS for name in flag.names} - {line.split()[0] for line in OPTIONS}
    assert missing == {"--show-prompt"}, "which has a test of its own"
    assert set(FORMATS) == {line.split()[1] for line in OPTIONS if line.split()[0] in ("-f", "--format")}


def test_show_prompt_asks_nothing(run, client):
    shown = run("%gemma -m big --show-prompt {pixels} why?")
    assert isinstance(shown, Preview)
    assert client.requests == []
    assert str(shown) == "<turn>user ..."
    assert client.rendered[0].messages[-1].text.endswith("why?")
    assert "5 text + 48 image tokens" in shown._repr_mimebundle_()["text/plain"]


def test_show_prompt_with_another_server_shows_the_messages(run, client):
    client.settings.base_url = "http://127.0.0.1:1/v1"
    shown = run("%gemma -m big --system Briefly. --show-prompt {pixels} why?")
    assert client.rendered == client.requests == []
    assert str(shown) == "--- system ---\nBriefly.\n\n--- user ---\n[picture 30 × 20]\nwhy?"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("-f yaml why?", "one of markdown, text, code, json, html, table"),
        ("--schema nope why?", "--schema nope is no schema: NameError"),
        ("--schema n why?", "is no schema"),
        ("-f html --schema list[int] why?", "cannot have a schema"),
    ],
)
def test_wrong_forms(run, client, line, words):
    with pytest.raises((UsageError, BadOption), match=words):
        run(f"%gemma {line}")
    assert client.requests == []


def test_a_schema_gives_a_value(run, client):
    client.chunks = [Chunk(text='[{"name": "Rome"}]'), Chunk(finish="stop")]
    assert [city.name for city in run("%gemma -m big --schema list[City] why?").value] == ["Rome"]
    assert run("%gemma -m big --schema list[City] why?").frame["name"].tolist() == ["Rome"]


def test_the_demo_gets_no_words_it_does_not_know(run, client):
    run("%gemma -f json why?")
    assert [message.role for message in client.requests[-1].messages] == ["user"]
    assert client.requests[-1].constraint == Constraint("json")


# -- commands ----------------------------------------------------------------------------------------------------

COMMAND_LINES = {
    "explain": [
        "/explain pixels",
        "/explain {pixels}",
        "/explain df",
        "/explain cell",
        "/explain plot",
        "/explain frame",
    ],
    "transcribe": [
        "/transcribe clip",
        "/transcribe (clip[0], 16000)",
        "/transcribe clip --srt",
        "/transcribe long_clip",
    ],
    "fix": ["/fix", "/fix and keep it short"],
    "code": ["/code plot {df}"],
    "doc": ["/doc", "/doc df.head"],
    "summarize": ["/summarize notebook", "/summarize", "/summarize df"],
    "verify": ["/verify", "/verify kept"],
}
WRITTEN = {
    "status": "state: ready",
    "load": "demo is loaded",
    "load big": "big is loaded",
    "unload": "No model is loaded",
    "models": "demo: text, image, audio · loaded",
    "history": "The conversation is empty",
    "reset": "begins anew",
    "help": "--image-tokens",
}


def test_every_command_is_in_a_table():
    assert set(COMMANDS) == set(COMMAND_LINES) | {line.split()[0] for line in WRITTEN}


@pytest.mark.parametrize("line", [line for lines in COMMAND_LINES.values() for line in lines])
def test_every_command_that_asks(run, client, shell, magics, monkeypatch, line):
    run("%gemma -m big -o kept -t 0 first?")
    run("df")
    magics.session.shown(
        {"content": {"data": {"image/svg+xml": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"}}}
    )
    with pytest.raises(ZeroDivisionError) as failed:
        run("n / 0")
    monkeypatch.setattr(sys, "last_exc", failed.value, raising=False)
    before = len(client.requests)
    assert isinstance(run(f"%gemma -m big {line}"), Answer)
    assert len(client.requests) == before + 1


@pytest.mark.parametrize("line", WRITTEN)
def test_every_command_that_tells(run, client, capsys, line):
    assert run(f"%gemma /{line}") is None
    assert WRITTEN[line] in capsys.readouterr().out
    assert client.requests == []


def test_fix_sends_the_cell_its_error_and_its_variables_and_offers_the_cell(run, shell, client, monkeypatch, capsys):
    run("import numpy as np\ndf2 = df\nrows = [1, 2, 3]")
    with pytest.raises(KeyError) as failed:
        run("total = sum(rows)\ndf2['b'] / total")
    monkeypatch.setattr(sys, "last_exc", failed.value, raising=False)
    run("'another cell'")
    client.chunks = [Chunk(text="```python\ntotal = sum(rows)\ndf2['a'] / total\n```"), Chunk(finish="stop")]
    offered: list[str] = []
    monkeypatch.setattr(shell, "set_next_input", offered.append)
    answer = run("%gemma -m big /fix")
    sent = client.requests[-1].messages[-1].text
    assert "df2['b'] / total" in sent
    assert "KeyError: 'b'" in sent
    assert re.search(r"df2: pandas[\w.]*DataFrame \(2, 1\) with columns a", sent)
    assert "rows: list of length 3" in sent
    assert offered == [answer.code] == ["total = sum(rows)\ndf2['a'] / total"]
    assert "-df2['b'] / total\n+df2['a'] / total" in capsys.readouterr().out


def test_code_writes_the_next_cell(run, shell, client, monkeypatch):
    client.chunks = [Chunk(text="```python\ndf.plot()\n```"), Chunk(finish="stop")]
    offered: list[str] = []
    monkeypatch.setattr(shell, "set_next_input", offered.append)
    run("%gemma -m big /code plot {df}")
    assert offered == ["df.plot()"]
    sent = client.requests[-1].messages[-1].text
    assert "n: int" in sent
    assert "Table of 2 rows" in sent


def test_summarize_sends_the_cells(run, client):
    run("speeds = [1, 2]")
    run("%gemma -m big /summarize notebook")
    assert "speeds = [1, 2]" in client.requests[-1].messages[-1].text


def test_verify_compares(run, client, capsys):
    run("%gemma -m big -o kept --seed 7 why?")
    run("%gemma /verify kept")
    assert "The answer is the same." in capsys.readouterr().out
    assert client.requests[-1].sampling.seed == 7
    client.chunks = [Chunk(text="It falls."), Chunk(finish="stop")]
    run("%gemma /verify kept")
    out = capsys.readouterr().out
    assert "The answer differs. Model, sampling, inputs and versions are the same" in out
    assert "-It rises.\n+It falls." in out


def test_verify_needs_an_answer(run):
    with pytest.raises(RequestError, match="This notebook holds no answer"):
        run("%gemma /verify")
    with pytest.raises(RequestError, match="n holds no answer"):
        run("%gemma /verify n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/fix", "No cell has failed"),
        ("/code", "needs words"),
        ("/doc a b", "no Python expression"),
        ("/explain plot", "No cell has shown a picture"),
        ("/explain frame", "No cell has shown a table"),
        ("/transcribe clip --wav", "no option --wav"),
        ("/transcribe clip --language", "needs a language"),
    ],
)
def test_commands_that_cannot(run, client, monkeypatch, line, words):
    for name in ("last_exc", "last_value"):
        monkeypatch.delattr(sys, name, raising=False)
    plt.close("all")
    with pytest.raises(UsageError, match=words):
        run(f"%gemma {line}")
    assert client.requests == []


def test_history_tells_what_was_said(run, capsys):
    run("%gemma -m big what is {df}")
    run("%gemma /history")
    out = capsys.readouterr().out
    assert "1. You: what is Table of 2 rows" in out
    assert "big: It rises." in out


def test_transcripts_in_every_form(run, client):
    rows = run("%gemma /transcribe clip --segments").frame
    assert rows.to_dict("list") == {"start": [0.0, 61.25], "end": [1.5, 3662.5], "text": ["open the file", "close it"]}
    assert run("%gemma /transcribe clip --srt").text == (
        "1\n00:00:00,000 --> 00:00:01,500\nopen the file\n\n2\n00:01:01,250 --> 01:01:02,500\nclose it\n"
    )
    assert run("%gemma /transcribe clip --vtt").text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nopen")
    assert run("%gemma /transcribe long_clip").text == "open the file close it"
    run("%gemma -m big /transcribe clip --language French --translate English")
    assert client.requests[-1].messages[-1].text == "The language is French. Translate it to English."


def test_the_magic_documents_itself(run, shell):
    text = shell.find_line_magic("gemma").__doc__
    for words in (*(f"/{name}" for name in COMMANDS), *(name for flag in FLAGS for name in flag.names)):
        assert words in text


def test_config_documents_itself_and_is_obeyed(run, client, capsys, magics):
    run("%config GemmaMagics")
    out = capsys.readouterr().out
    for words in ("GemmaMagics.model", "GemmaMagics.rows", "GemmaMagics.widgets", "no cell value leaves a frame"):
        assert words in out
    run("%config GemmaMagics.model = 'big'")
    run("%config GemmaMagics.system = 'Briefly.'")
    run("%gemma why?")
    assert (client.requests[-1].model, client.requests[-1].messages[0].text) == ("big", "Briefly.")
    run("%config GemmaMagics.format = 'yaml'")  # IPython tells, and does not raise
    assert magics.format == "markdown"


def test_out_is_also_the_picture_that_a_cell_showed(run, shell, client, magics):
    import base64
    import io

    from PIL import Image

    from jupyter_gemma.types import ImagePart

    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, format="PNG")
    cell = shell.execution_count
    magics.session.shown({"content": {"data": {"image/png": base64.b64encode(buffer.getvalue()).decode()}}})
    run("1")
    run(f"%gemma -m big {{Out[{cell}]}} and {{Out[{cell}]}} what?")
    run("'x'")
    shell.user_ns["Out"].pop(cell)
    run(f"%gemma -m big {{Out[{cell}]}} what?")
    assert isinstance(client.requests[-1].messages[-1].parts[0], ImagePart)
    with pytest.raises(RequestError, match="raised KeyError: 99"):
        run("%gemma {Out[99]}")
