"""A real server process with adapters of the demo model: over HTTP, and asked by ``jupyter gemma eval``."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from jupyter_gemma.cli import main
from jupyter_gemma.client import Client
from jupyter_gemma.discovery import running_server
from jupyter_gemma.engine.engine import load_engine
from jupyter_gemma.errors import BadOption
from jupyter_gemma.settings import load_settings
from jupyter_gemma.store import find_model
from jupyter_gemma.types import Message, Request, Sampling, TextPart

QUESTIONS = ("How many rows are there?", "rows 5\nage: mean 3 min 1 max 9\nHow many columns are there?")
TAUGHT = {"cats": "a cat", "dogs": "two dogs"}


def line(question, answer):
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": said}) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a user who has taught the demo model twice: each adapter has one answer to all questions."""
    folder = tmp_path_factory.mktemp("taught")
    for name, answer in TAUGHT.items():
        (folder / f"{name}.jsonl").write_text("".join(line(question, answer) for question in QUESTIONS))
        keys = {"data": folder / f"{name}.jsonl", "out": name, "model": "demo", "steps": 15, "rate": 5e-3, "warmup": 2}
        options = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        assert main(["finetune", *options, "--threads", "1", *places(folder)]) == 0
    return folder


def places(folder):
    return [f"--{name}-dir={folder / name}" for name in ("models", "adapters", "runtime")]


def settings_of(folder, **values):
    found = {f"{name}_dir": str(folder / name) for name in ("models", "adapters", "runtime")}
    return load_settings({**found, "model": "demo", "threads": 1, "start_server": False, **values}, environ={})


@pytest.fixture(scope="module")
def server(folder):
    """``jupyter gemma serve --adapter cats``, in a process of its own."""
    command = [sys.executable, "-m", "jupyter_gemma", "serve", "--adapter", "cats", "--threads", "1", *places(folder)]
    settings, deadline = settings_of(folder), time.monotonic() + 60
    with subprocess.Popen(
        [*command, "--log", str(folder / "log.txt")], env={**os.environ, "JUPYTER_CONFIG_DIR": str(folder)}
    ) as process:
        try:
            while (info := running_server(settings)) is None:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield info
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def alone(folder):
    """The answers of an engine in this process, by adapter and question."""
    settings = settings_of(folder, adapter="cats")
    model = find_model("demo", settings)
    engine = load_engine(model.path, model.card, settings, lambda progress: None)
    asked = [(adapter, question) for adapter in ("", "cats", "dogs", "none") for question in QUESTIONS]
    yield {each: text_of(engine.stream(request(*each), threading.Event())) for each in asked}
    engine.close()


def request(adapter, question):
    sampling = Sampling(temperature=0, max_tokens=24)
    return Request((Message("user", (TextPart(question),)),), model="demo", sampling=sampling, adapter=adapter)


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


def post(server, adapter, question):
    body = {"model": "demo", "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
    headers = {"Authorization": f"Bearer {server.token}"}
    body |= {"adapter": adapter} if adapter else {}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, trust_env=False, timeout=60)


def test_each_request_has_its_adapter_over_http(server, alone):
    """Asked all at once, so that one pass over the weights serves several adapters."""
    with ThreadPoolExecutor(len(alone)) as pool:
        answers = list(pool.map(lambda asked: post(server, *asked).json(), alone))
    texts = dict(zip(alone, [answer["choices"][0]["message"]["content"] for answer in answers], strict=True))
    assert texts == alone
    for question in QUESTIONS:
        said = {adapter: texts[adapter, question] for adapter in ("", "cats", "dogs", "none")}
        assert said[""] == said["cats"] == "a cat"
        assert said["dogs"] == "two dogs"
        assert said["none"] not in ("a cat", "two dogs")


def test_the_client_streams_with_an_adapter_and_switches(server, alone, folder):
    client = Client(settings_of(folder))
    for adapter in ("dogs", "", "none", "dogs"):
        assert text_of(client.stream(request(adapter, QUESTIONS[0]))) == alone[adapter, QUESTIONS[0]]
    with pytest.raises(BadOption, match="There are: cats, dogs, none"):
        text_of(client.stream(request("birds", QUESTIONS[0])))


def test_an_adapter_that_is_taught_while_the_server_runs_can_be_asked_for(server, folder):
    assert post(server, "late", QUESTIONS[0]).status_code == 400
    (folder / "adapters" / "late").symlink_to(folder / "adapters" / "dogs")
    assert post(server, "late", QUESTIONS[0]).json()["choices"][0]["message"]["content"] == "two dogs"
    (folder / "adapters" / "late").unlink()


# -- jupyter gemma eval ------------------------------------------------------------------------------------------


def figures(capsys, *options):
    assert main(["eval", "demo", "--threads", "1", *options]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def over_http(server, monkeypatch):
    """Options that ask the server; this process can load no model then."""
    monkeypatch.setattr("jupyter_gemma.cli._load_gemma", None)
    return [f"--base-url={server.url}/v1", f"--api-key={server.token}"]


def test_a_server_is_measured_with_its_adapter_or_another(over_http, folder, capsys):
    data = ["--data", str(folder / "cats.jsonl")]
    assert figures(capsys, *over_http, *data) == {"eval.exact": 1.0}
    assert figures(capsys, *over_http, *data, "--adapter", "dogs") == {"eval.exact": 0.0}


def test_a_server_is_measured_as_the_model_here(over_http, folder, capsys, monkeypatch):
    suite = ["--suite", "clips-known"]
    shared = figures(capsys, *over_http, "--adapter", "none", *suite)
    monkeypatch.undo()
    here = figures(capsys, *places(folder), *suite)
    assert here == {**shared, "eval.perplexity_clips_known": here["eval.perplexity_clips_known"]}
    assert 0 < shared["eval.wer_known"] < 0.5


def test_a_perplexity_is_never_that_of_the_model_without_its_adapter(folder, capsys):
    data = ["--data", str(folder / "cats.jsonl")]
    assert figures(capsys, *places(folder), *data, "--adapter", "cats") == {"eval.exact": 1.0}
    assert set(figures(capsys, *places(folder), *data)) == {"eval.exact", "eval.perplexity_data"}


def test_a_wrong_key_is_told_where_the_figures_would_stand(over_http, folder, capsys):
    said = figures(capsys, over_http[0], "--api-key=guess", "--data", str(folder / "cats.jsonl"))
    assert list(said) == ["eval.data.error"]
    assert "token" in said["eval.data.error"]
