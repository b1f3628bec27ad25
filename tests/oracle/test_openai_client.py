"""Somebody else's client against our server: the official ``openai`` package and a real echo server process."""

import base64
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_gemma.discovery import find_or_start
from jupyter_gemma.settings import load_settings

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """URL and token of an echo server."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNTIME", "DATA", "CONFIG"):
            patch.setenv(f"JUPYTER_{name}_DIR", str(folder / name.lower()))
        server = find_or_start(load_settings({"engine": "echo"}, environ={}))
        yield server.url, server.token
        os.kill(server.pid, signal.SIGTERM)


@pytest.fixture
def client(address: tuple[str, str]) -> Iterator[Any]:
    url, token = address
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client:
        yield client


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "echo-slow", "echo-broken"]


def test_a_whole_answer(client: Any) -> None:
    answer = client.chat.completions.create(model="echo", messages=QUESTION)
    assert answer.choices[0].message.content == "Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "echo"
    assert answer.usage.total_tokens == 4
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_streamed_answer_with_usage(client: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model="echo", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_loading_a_model_does_not_disturb_a_stream(client: Any) -> None:
    # echo-slow reports its loading in comments before the answer.
    chunks = client.chat.completions.create(model="echo-slow", messages=QUESTION, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there"


def test_pictures_and_sound_arrive(client: Any) -> None:
    data = base64.b64encode(b"RIFF....").decode()
    content = [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "high"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == "See [picture of 8 bytes] [sound of 8 bytes]"


def test_options_and_our_own_ones(client: Any) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=QUESTION,
        temperature=0.0,
        max_completion_tokens=1,
        seed=1,
        stop=["END"],
        user="me",
        extra_body={"top_k": 5, "thinking": True, "image_tokens": 70},
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "Hello"
    assert answer.choices[0].message.reasoning_content == "Looking at what arrived."


def test_errors_are_the_clients_own_classes(client: Any) -> None:
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="gpt-4") as unknown:
        create(model="gpt-4", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="n is 99"):
        create(model="echo", messages=QUESTION, n=99)
    with pytest.raises(openai.UnprocessableEntityError, match="broken on purpose"):
        create(model="echo-broken", messages=QUESTION)
    with pytest.raises(openai.APIError, match="broken on purpose"):
        list(create(model="echo-broken", messages=QUESTION, stream=True))
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(openai.AuthenticationError, match="token"):
        stranger.models.list()


def test_leaving_a_stream_leaves_a_usable_server(client: Any) -> None:
    long = [{"role": "user", "content": "word " * 1000}]
    with client.chat.completions.create(model="echo-slow", messages=long, stream=True) as stream:
        next(iter(stream))
    # A thousand words take 50 seconds; this answer would wait for them.
    assert client.with_options(timeout=10).chat.completions.create(model="echo", messages=QUESTION).choices
