"""Reading answers, what stands in their output, and where they are kept."""

import asyncio
import json
import os
from dataclasses import replace

import pytest

from jupyter_gemma.errors import BadAnswer
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.bundle import bundle, metadata
from jupyter_gemma.notebook.cache import AnswerCache
from jupyter_gemma.notebook.provenance import key_of
from jupyter_gemma.notebook.schemas import schema_of
from jupyter_gemma.types import AudioPart, Chunk, ImagePart, Message, ModelCard, Request, Sampling, TextPart, Usage

TABLE = "Here:\n\n| city | rain |\n|:---|---:|\n| Rome | 60 |\n| Oslo | 90.5 |\n\nThat is all | done"
CSV = "```csv\ncity,rain\nRome,60\n```"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("No code.", ""),
        ("```python\nx = 1\n```", "x = 1"),
        ("First:\n```\na\n```\nthen\n~~~py\nb\n~~~", "a\n\nb"),
        ("````md\n```\ninner\n```\n````", "```\ninner\n```"),
        ("```python\nx = 1", ""),
    ],
)
def test_code(text, code):
    assert Answer(text).code == code


def test_only_code_needs_no_fence():
    assert Answer("x = 1\n", format="code").code == "x = 1"


def test_json_and_frames():
    assert Answer('{"a": [1]}').json == {"a": [1]}
    assert Answer('So:\n```json\n{"a": 1}\n```').json == {"a": 1}
    for text in (TABLE, CSV, '[{"city": "Rome", "rain": 60}]', '{"rows": [{"city": "Rome", "rain": 60}]}'):
        frame = Answer(text).frame
        assert list(frame.columns) == ["city", "rain"]
        assert (frame["city"][0], frame["rain"][0]) == ("Rome", 60)
    assert Answer(TABLE).frame.shape == (2, 2)
    assert Answer('{"city": "Rome", "rain": 60}').frame.shape == (1, 2)
    assert Answer('{"city": ["Rome", "Oslo"], "rain": [60, 90]}').frame.shape == (2, 2)


@pytest.mark.parametrize("read", ["json", "frame"])
def test_what_is_no_data_says_so(read):
    with pytest.raises(BadAnswer, match="The answer holds no"):
        getattr(Answer("It rises."), read)


def test_values_of_a_schema():
    assert Answer("[1, 2]", schema=schema_of(list[int])).value == [1, 2]
    assert Answer("It rises.").value == "It rises."
    with pytest.raises(BadAnswer, match="does not fit the schema"):
        _ = Answer("[1, 'x", schema=schema_of(list[int])).value


def test_an_answer_can_be_awaited():
    async def ask():
        return await Answer("It rises.")

    assert asyncio.run(ask()).text == "It rises."


# -- as an output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "words"),
    [
        ("text", "a *b* <img src=x>", "```text\na *b* <img src=x>\n```"),
        ("text", "a ``` b", "````text\na ``` b\n````"),
        ("code", "```python\nx = 1\n```", "```python\nx = 1\n```"),
        ("json", '{"a":1}', '```json\n{\n  "a": 1\n}\n```'),
        ("json", "no <b>", "no < b>"),
        ("table", '[{"a": 1, "b": "x|y"}, {"a": 2}]', "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n| 2 |  |"),
        ("markdown", "![x](http://host/p.png) <script>1</script>", "[x](http://host/p.png) < script>1< /script>"),
    ],
)
def test_forms_on_display(form, text, words):
    assert bundle(Answer(text, finish="stop", format=form))["text/markdown"].startswith(words)


def test_html_stands_in_a_frame_that_can_do_nothing():
    page = '<p onclick="x()">Hi</p><script src="http://host/x.js"></script>"><img src="http://host/y">'
    shown = bundle(Answer(page, finish="stop", format="html", model="big"))
    assert "text/markdown" not in shown
    assert shown["text/html"].startswith('<iframe sandbox srcdoc="')
    inside = shown["text/html"].partition('srcdoc="')[2].partition('"')[0]
    assert "default-src &#x27;none&#x27;" in inside
    assert "<" not in inside
    assert "<script" not in shown["text/html"]


def test_long_tables_are_cut_on_display():
    rows = json.dumps([{"n": number} for number in range(500)])
    assert "… 300 more rows" in bundle(Answer(rows, finish="stop", format="table"))["text/markdown"]


def test_thoughts_are_folded_and_harmless():
    shown = bundle(Answer("Yes.", thinking="Hm <img src=x>", finish="stop"))["text/markdown"]
    assert shown.startswith("<details><summary>thinking</summary>\n\nHm < img src=x>")


def test_the_metadata_say_what_made_it(run, client):
    answer = run("%gemma -m big --seed 3 -t 0.5 --system Briefly. why?")
    record = answer.record
    assert (record["model"], record["sampling"]) == ("big", {"temperature": 0.5, "seed": 3})
    assert [(each["role"], each["kind"], len(each["sha256"])) for each in record["inputs"]] == [
        ("system", "text", 64),
        ("user", "text", 64),
    ]
    assert set(record["versions"]) == {"jupyter-gemma", "python"}
    assert metadata(answer) == {"jupyter_gemma": {**record, "finish": "stop", "characters": len(answer.text)}}
    json.dumps(record)


def test_digest_and_quantisation_come_from_the_server(run, client):
    client.status = lambda: {"state": "ready", "model": "big", "engine": {"digest": "abc", "quantization": "int4"}}
    assert run("%gemma -m big why?").record["digest"] == "abc"
    assert run("%gemma -m big why?").record["quantization"] == "int4"
    assert "digest" not in run("%gemma -m demo why?").record


@pytest.mark.usefixtures("demo_server")
def test_a_real_server_tells_them():
    record = Gemma()("What is this?", model="demo", show=False).record
    assert len(record["digest"]) == 64
    assert record["quantization"] in ("none", "int8", "int4")
    assert record["context_length"] > 1000


# -- kept answers ------------------------------------------------------------------------------------------------


def test_the_same_question_is_answered_from_the_cache_and_says_so(run, client):
    first = run("%gemma -m big --no-history -t 0.7 why?")
    again = run("%gemma -m big --no-history -t 0.7 why?")
    assert len(client.requests) == 1
    assert (again.text, again.usage, again.record) == (first.text, first.usage, first.record)
    assert "cached on 20" in bundle(again)["text/plain"]
    assert not first.cached
    run("%gemma -m big --no-history -t 0.7 --no-cache why?")
    assert len(client.requests) == 2


@pytest.mark.parametrize("line", ["-m big how?", "-m big --seed 1 why?", "-m base why?", "-m big --think why?"])
def test_another_question_is_asked(run, client, line):
    run("%gemma -m big --no-history why?")
    run(f"%gemma --no-history {line}")
    assert len(client.requests) == 2


def test_everything_that_decides_is_in_the_key():
    request = Request((Message("user", (TextPart("why?"), ImagePart(b"1"), AudioPart(b"2"))),), model="m")
    card = ModelCard("m")
    keys = {
        key_of(request, card, {}),
        key_of(replace(request, model="n"), card, {}),
        key_of(replace(request, sampling=Sampling(temperature=1)), card, {}),
        key_of(replace(request, thinking=True), card, {}),
        key_of(replace(request, image_tokens=70), card, {}),
        key_of(replace(request, messages=(Message("user", (TextPart("why?"), ImagePart(b"3"))),)), card, {}),
        key_of(replace(request, messages=(Message("system", request.messages[0].parts),)), card, {}),
        key_of(request, replace(card, revision="2"), {}),
        key_of(request, card, {"quantization": "int4"}),
    }
    assert len(keys) == 9
    assert key_of(replace(request, client="kernel 1"), card, {}) == key_of(request, card, {})


def test_other_weights_are_another_question(run, client):
    run("%gemma -m big --no-history why?")
    client.cards[1] = replace(client.cards[1], revision="new")
    run("%gemma -m big --no-history why?")
    assert len(client.requests) == 2


@pytest.mark.parametrize("last", [Chunk(finish="length"), KeyboardInterrupt()])
def test_half_an_answer_is_not_kept(run, client, magics, last):
    client.chunks = [Chunk(text="Half"), last]
    with pytest.raises(KeyboardInterrupt) if isinstance(last, KeyboardInterrupt) else _nothing():
        run("%gemma -m big --no-history why?")
    assert list(magics.session.asker.cache.folder.glob("*")) == []


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_the_cache_is_private_bounded_and_survives_damage(tmp_path):
    cache = AnswerCache(tmp_path / "answers", max_bytes=2_500)
    answer = Answer("x" * 500, usage=Usage(completion_tokens=3), finish="stop")
    for number in range(6):
        cache.put(f"key{number}", answer)
        os.utime(cache.folder / f"key{number}.json", (number, number))
    assert cache.get("key0") is None
    assert cache.get("key5")["usage"].completion_tokens == 3
    assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= 2_500
    assert (cache.folder / "key5.json").stat().st_mode & 0o077 == 0
    (cache.folder / "key5.json").write_text("{broken")
    assert cache.get("key5") is None
    cache.clear()
    assert list(cache.folder.iterdir()) == []


def test_a_full_disk_is_no_reason_to_fail(tmp_path):
    (tmp_path / "answers").write_text("a file stands in the way")
    cache = AnswerCache(tmp_path / "answers")
    cache.put("key", Answer("x", finish="stop"))
    assert cache.get("key") is None


def test_running_all_cells_again_asks_nothing(run, client, shell, monkeypatch):
    """The front end names the cell; a second run of it replaces what it had said, so the same is asked."""
    cell = [""]
    monkeypatch.setattr(type(shell), "get_parent", lambda self: {"metadata": {"cellId": cell[0]}}, raising=False)

    def run_all():
        texts = []
        for cell[0], source in (("a", "%gemma -m big one"), ("b", "%gemma -m big two\n%gemma -m big three")):
            texts.append(run(source).text)
        return texts

    first = run_all()
    assert len(client.requests) == 3
    assert len(client.requests[-1].messages) == 5
    assert run_all() == first
    assert len(client.requests) == 3
