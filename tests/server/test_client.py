"""The client: streaming, stopping, errors of the same class, and servers that are not ours."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from jupyter_gemma import client as client_module
from jupyter_gemma import discovery
from jupyter_gemma.client import Client
from jupyter_gemma.discovery import running_server
from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import (
    BadAudio,
    BadImage,
    BadOption,
    GemmaError,
    NotAuthorized,
    PromptTooLong,
    RequestError,
    ServerBusy,
    ServerError,
    ServerLost,
    ServerNotRunning,
    UnknownModel,
    UnsupportedInput,
)
from jupyter_gemma.probe import foreign_body
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import (
    AudioPart,
    Chunk,
    Constraint,
    Frame,
    ImagePart,
    Message,
    ModelCard,
    Progress,
    Request,
    Sampling,
    Segment,
    TextPart,
    ToolCall,
    Usage,
    VideoPart,
)

MakeWorker = Callable[..., Any]
Serving = Callable[..., Any]
WaitUntil = Callable[[Callable[[], object]], None]
LONG = Reply(tuple(Chunk(text=f"{number} ") for number in range(10_000)), delay=0.01)


def ask(text: str = "Hi there", **options: Any) -> Request:
    return Request((Message("user", (TextPart(text),)),), **options)


@pytest.fixture
def engine() -> EchoEngine:
    return EchoEngine()


@pytest.fixture
def client(settings: Settings, serving: Serving, make_worker: MakeWorker, engine: EchoEngine) -> Client:
    """A client whose server runs already."""
    serving(make_worker({"a": engine, "b": engine}))
    settings.start_server = False
    return Client(settings)


@contextmanager
def canned(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """The base_url of a server that answers every connection with ``answer``, and what it was sent."""
    received: list[bytes] = []

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", received
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def http_answer(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n\r\n{body}".encode()


def choice(finish: str | None = None, **delta: str) -> str:
    """An event's content, as another server would write it."""
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]})


def error(code: str | None, message: str) -> str:
    return json.dumps({"error": {"message": message, "code": code}})


# -- answers ---


def test_an_answer_comes_as_chunks(client: Client, engine: EchoEngine) -> None:
    request = ask("Hello there", sampling=Sampling(temperature=0.5, seed=3), image_tokens=70)
    chunks = list(client.stream(request))
    assert chunks[0] == Chunk(progress=Progress("loading a"))
    assert [chunk.text for chunk in chunks[1:-1]] == ["Hello", " there"]
    assert chunks[-1].finish == "stop"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (2, 2)
    assert chunks[-1].usage.decode_seconds > 0
    (received,) = engine.requests
    assert received.model == "a"
    assert (received.messages, received.sampling, received.image_tokens) == (request.messages, request.sampling, 70)


def test_everything_in_a_chunk_arrives(settings: Settings, serving: Serving, make_worker: MakeWorker) -> None:
    chunks = (
        Chunk(progress=Progress("reading the prompt", 1, 2)),
        Chunk(thinking="Hm."),
        Chunk(text="one\u2028\x85\n\r\n\x1ctwo é 🙂"),
        Chunk(tool_call=ToolCall("f", {"x": [1, "ü"]}, "id-1")),
        Chunk(finish="tool_calls", usage=Usage(3, 70, 5, 2, 9, 0.5, 0.25)),
    )
    serving(make_worker({"a": EchoEngine(script=[Reply(chunks)])}))
    assert tuple(Client(settings).stream(ask()))[1:] == chunks


def test_media_arrive(client: Client) -> None:
    request = Request((Message("user", (TextPart("See"), ImagePart(b"\x89PNG....."))),))
    assert "".join(chunk.text for chunk in client.stream(request)) == "See [picture of 9 bytes]"


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_leaving_the_answer_stops_the_engine(
    settings: Settings, serving: Serving, make_worker: MakeWorker, wait_until: WaitUntil, how: str
) -> None:
    engine = EchoEngine(script=[LONG])
    serving(make_worker({"a": engine}))
    answer = Client(settings).stream(ask())
    next(chunk for chunk in answer if chunk.text)
    if how == "close":
        answer.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(KeyboardInterrupt):
            answer.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    wait_until(lambda: engine.cancelled)
    assert engine.steps < 100


def test_errors_come_back_as_their_class(settings: Settings, serving: Serving, make_worker: MakeWorker) -> None:
    errors = [BadImage("Zero pixels.", "Send another."), PromptTooLong("9000 tokens."), GemmaError("Odd.")]
    script = [Reply(error=error) for error in errors] + [Reply((Chunk(text="a"),), error=errors[0])]
    serving(make_worker({"a": EchoEngine(script=[Reply(), *script])}))
    client = Client(settings)
    list(client.stream(ask()))
    for error in (*errors, errors[0]):
        with pytest.raises(type(error)) as caught:
            list(client.stream(ask()))
        assert type(caught.value) is type(error)
        assert (caught.value.message, caught.value.fix) == (error.message, error.fix)


def test_a_question_is_checked_before_it_is_sent(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="cannot be sent as JSON"):
        list(client.stream(ask(sampling=Sampling(temperature=float("nan")))))
    with pytest.raises(BadOption, match="temperature is 3"):
        list(client.stream(ask(sampling=Sampling(temperature=3))))
    monkeypatch.setattr(client_module, "MAX_BODY_BYTES", 50)
    with pytest.raises(RequestError, match="more than 50"):
        list(client.stream(ask()))


# -- transcripts, prompts, tokens ---


def clip_of(data: bytes = b"RIFF\r\n--\r\n", text: str = "", **options: Any) -> Request:
    parts = (AudioPart(data), *([TextPart(text)] if text else []))
    return Request((Message("user", parts),), **options)


def test_a_transcript_comes_as_segments(settings: Settings, serving: Serving, make_worker: MakeWorker) -> None:
    worker = make_worker({"a": EchoEngine()})
    worker.find = lambda name: ModelCard("a", modalities=("text", "audio"))
    serving(worker)
    chunks = list(Client(settings).transcribe(clip_of(text="Names: Ada", sampling=Sampling(temperature=0.0))))
    assert chunks[0] == Chunk(progress=Progress("loading a"))
    segments = [chunk.segment for chunk in chunks if chunk.segment]
    assert segments[0] == Segment(0.0, 1.0, "[sound")
    assert " ".join(found.text for found in segments) == "[sound of 10 bytes] Names: Ada"
    assert chunks[-1].finish == "stop"
    assert chunks[-1].usage == Usage(text_tokens=2, audio_tokens=1, completion_tokens=6)


def test_what_has_no_clip_is_not_transcribed(client: Client) -> None:
    with pytest.raises(RequestError, match="0 clips"):
        list(client.transcribe(ask()))
    with pytest.raises(UnsupportedInput, match="a takes no sound"):
        list(client.transcribe(clip_of()))


def test_a_transcript_that_breaks_off_is_an_error(elsewhere: Callable[[str], Client]) -> None:
    for answer, kind, named in (
        (http_answer('data: {"type": "transcript.text.delta", "delta": "a"}\n'), ServerLost, "transcript was complete"),
        (http_answer("data: {}\n"), ServerError, "cannot be read"),
        (http_answer(f"data: {error('invalid_audio', 'Silent')}\n"), BadAudio, "Silent"),
        (http_answer("", "404 Not Found"), UnsupportedInput, "writes no transcripts"),
    ):
        with canned(answer) as (url, _), pytest.raises(kind, match=named):
            list(elsewhere(url).transcribe(clip_of(model="m")))


def test_the_exact_prompt_and_tokens(client: Client) -> None:
    found = client.render(ask("Hi there"))
    assert found["prompt"] == "user: Hi there\n"
    assert (found["prompt_tokens"], found["text_tokens"]) == (2, 2)
    assert client.tokenize("a bcd") == [1, 3]
    client.settings.base_url = "http://127.0.0.1:1/v1"
    with pytest.raises(BadOption, match="base_url is set"):
        client.render(ask())


def test_clients_have_names_of_their_own(client: Client, engine: EchoEngine) -> None:
    for asker in (client, client, Client(client.settings)):
        list(asker.stream(ask()))
    list(client.stream(ask(client="panel")))
    names = [request.client for request in engine.requests]
    assert names[0] == names[1] != names[2]
    assert all(names)
    assert names[3] == "panel"


# -- what another server can do ---


class Pretender:
    """A server that answers as ``judge(body)`` says: the message's text, and the prompt's tokens."""

    def __init__(self, judge: Callable[[dict[str, Any]], tuple[str, int] | None]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._judge = judge

    def __call__(self, method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> dict[str, Any]:
        if method == "GET":
            return {"data": [{"id": "m", "owned_by": "vllm"}]}
        self.bodies.append(json.loads(body or b""))
        found = self._judge(self.bodies[-1])
        if found is None:
            raise RequestError("extra fields not permitted")
        choice = {
            "message": {"content": found[0]},
            "logprobs": {"content": [{}]} if "logprobs" in self.bodies[-1] else None,
        }
        return {"choices": [choice], "usage": {"prompt_tokens": found[1]}}


def able(body: dict[str, Any]) -> tuple[str, int]:
    """A server that can do everything."""
    plain = isinstance(body["messages"][0]["content"], str)
    longer = not plain or "tools" in body or "chat_template_kwargs" in body
    form = body.get("response_format", {}).get("type")
    text = {"json_object": '{"a": 1}', "json_schema": '{"k7": true}'}.get(form, "Hello")
    text = "1234" if "regex" in body else body["choice"][0] if "choice" in body else text
    return text, 20 if longer else 5


def ignorant(body: dict[str, Any]) -> tuple[str, int]:
    """A server that ignores what it does not know."""
    return "Hello", 5


def test_abilities_are_those_that_show(elsewhere: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = elsewhere("http://127.0.0.1:1/v1")
    monkeypatch.setattr(client_module, "_call", Pretender(able))
    found = client.abilities()
    assert {name for name, there in found.items() if not there} == {"image_tokens"}
    client = elsewhere("http://127.0.0.1:2/v1")
    monkeypatch.setattr(client_module, "_call", Pretender(ignorant))
    found = client.abilities()
    assert {name for name, there in found.items() if there} == {"logprobs", "top_k", "min_p", "repetition_penalty"}


def test_each_ability_is_tried_once(elsewhere: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    client = elsewhere("http://127.0.0.1:1/v1")
    server = Pretender(lambda body: None if "tools" in body else ignorant(body))
    monkeypatch.setattr(client_module, "_call", server)
    for _ in range(2):
        with pytest.raises(UnsupportedInput, match="takes no pictures with the model m"):
            list(client.stream(Request((Message("user", (ImagePart(b"\x89PNG"),)),), model="m")))
    assert len(server.bodies) == 2  # with a picture and without
    with pytest.raises(UnsupportedInput, match="offers no tools"):
        list(client.stream(ask(model="m", tools=({"type": "function", "function": {"name": "f"}},))))


def test_a_trial_that_the_server_breaks_on_shows_a_lack(
    elsewhere: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    failure: list[Exception] = [GemmaError("'type'")]

    def judge(body: dict[str, Any]) -> tuple[str, int]:
        if not isinstance(body["messages"][0]["content"], str):
            raise failure[0]
        return "Hello", 5

    monkeypatch.setattr(client_module, "_call", Pretender(judge))
    picture = Request((Message("user", (ImagePart(b"\x89PNG"),)),), model="m")
    client = elsewhere("http://127.0.0.1:1/v1")
    for error in (ServerBusy("Later."), ServerLost("Gone."), UnknownModel("No m."), NotAuthorized("No key.")):
        failure[0] = error
        with pytest.raises(type(error), match=error.message):
            list(client.stream(picture))
    failure[0] = GemmaError("'type'")
    with pytest.raises(UnsupportedInput, match="takes no pictures"):
        list(client.stream(picture))


def test_a_plain_question_costs_no_trial(elsewhere: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_call", lambda *args: pytest.fail("something was tried"))
    with canned(http_answer(f"data: {choice('stop', content='Hi')}\n")) as (url, _):
        chunks = list(elsewhere(url).stream(ask(model="m", sampling=Sampling(temperature=0.0))))
    assert chunks[0].text == "Hi"


def test_another_server_is_asked_in_its_own_spelling() -> None:
    video = VideoPart((Frame(0.5, b"\x89PNG1"), Frame(65.0, b"\x89PNG2")))
    request = Request((Message("user", (TextPart("See"), video)),), thinking=True, constraint=Constraint("regex", "a+"))
    body = foreign_body(request)
    kinds = [(part["type"], part.get("text")) for part in body["messages"][0]["content"]]
    assert kinds == [("text", "See"), ("text", "00:00 "), ("image_url", None), ("text", "01:05 "), ("image_url", None)]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert body["structured_outputs"] == {"regex": "a+"}
    assert "thinking" not in body


def test_our_own_server_elsewhere_is_not_tried(
    elsewhere: Callable[[str], Client], serving: Serving, make_worker: MakeWorker
) -> None:
    engine = EchoEngine()
    server = serving(make_worker({"a": engine}))
    client = elsewhere(f"{server.info.url}/v1")
    client.settings.api_key = server.info.token
    assert all(client.abilities().values())
    list(client.stream(ask(image_tokens=70, constraint=Constraint("choice", ["a"]))))
    assert len(engine.requests) == 1
    assert engine.requests[0].constraint == Constraint("choice", ["a"])


# -- the server's life ---


def test_models_and_residency(client: Client, engine: EchoEngine) -> None:
    assert client.models() == [ModelCard("a"), ModelCard("b")]
    seen: list[Progress] = []
    assert client.status()["state"] == "empty"
    assert client.load("b", seen.append)["model"] == "b"
    assert seen == [Progress("loading b")]
    status = client.status()
    assert (status["state"], status["model"]) == ("ready", "b")
    assert status["url"].startswith("http://127.0.0.1:")
    assert client.unload()["state"] == "empty"
    assert engine.closed.is_set()
    with pytest.raises(UnknownModel, match="'nope'"):
        client.load("nope")


def test_the_model_of_the_settings_is_asked(client: Client, engine: EchoEngine) -> None:
    client.settings.model = "b"
    list(client.stream(ask()))
    list(client.stream(ask(model="a")))
    assert [request.model for request in engine.requests] == ["b", "a"]
    assert client.load()["model"] == "b"


def test_stopping_ends_the_server(client: Client, wait_until: WaitUntil) -> None:
    assert client.stop_server() is True
    wait_until(lambda: running_server(client.settings) is None)
    assert client.stop_server() is False
    with pytest.raises(ServerNotRunning):
        list(client.stream(ask()))


def test_looking_and_ending_start_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_launch", lambda settings: pytest.fail("a server was started"))
    client = Client(settings)
    assert client.status()["state"] == "stopped"
    assert client.unload()["state"] == "stopped"
    assert client.stop_server() is False


def test_proxies_of_the_environment_are_not_used_for_this_machine(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert client.models()


def test_importing_the_client_loads_no_http_library() -> None:
    heavy = ("httpx", "torch", "fastapi")
    code = f"import sys, jupyter_gemma.client; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


# -- other servers ---


@pytest.fixture
def elsewhere(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Client]:
    """Build clients of a base_url; they must start nothing."""
    monkeypatch.setattr(discovery, "_launch", lambda settings: pytest.fail("a server was started"))

    def make(base_url: str) -> Client:
        settings.base_url = base_url
        settings.api_key = "sk-key"
        return Client(settings)

    return make


def test_base_url_is_used_with_its_key(
    elsewhere: Callable[[str], Client], serving: Serving, make_worker: MakeWorker, engine: EchoEngine
) -> None:
    server = serving(make_worker({"a": engine, "b": engine}))
    client = elsewhere(f"{server.info.url}/v1/")
    with pytest.raises(NotAuthorized):
        client.models()
    client.settings.api_key = server.info.token
    assert "".join(chunk.text for chunk in client.stream(ask())) == "Hi there"
    assert engine.requests[0].model == "a"
    assert client.status()["state"] == "remote"
    for call in (client.load, client.unload, client.stop_server):
        with pytest.raises(BadOption, match="base_url is set"):
            call()


def test_a_foreign_answer_without_usage_is_complete(elsewhere: Callable[[str], Client]) -> None:
    events = [f"data: {choice(content='Hi')}", f"data: {choice('eos')}", "data: [DONE]", ""]
    with canned(http_answer("\r\n\r\n".join(events))) as (url, received):
        chunks = list(elsewhere(url).stream(ask(model="m")))
    assert chunks == [Chunk(text="Hi"), Chunk(finish="stop")]
    assert b"authorization: bearer sk-key" in received[0].lower()


@pytest.mark.parametrize(
    ("answer", "kind", "named"),
    [
        (b"", ServerLost, "connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ndata: ", ServerLost, "connection broke"),
        (http_answer(f"data: {choice(content='Hi')}\n\n"), ServerLost, "before the answer was complete"),
        (http_answer("<html>"), ServerLost, "before the answer was complete"),
        (http_answer("data: <html>\n"), ServerError, "cannot be read"),
        (http_answer("<html>", "502 Bad Gateway"), GemmaError, "HTTP status 502"),
        (http_answer(error(None, "No such model"), "404 Not Found"), UnknownModel, "No such model"),
        (http_answer(f"data: {error('context_length_exceeded', 'Too long')}\n"), PromptTooLong, "Too long"),
    ],
)
def test_a_broken_answer_is_an_error(
    elsewhere: Callable[[str], Client], answer: bytes, kind: type[GemmaError], named: str
) -> None:
    with canned(answer) as (url, _), pytest.raises(kind, match=named) as caught:
        list(elsewhere(url).stream(ask(model="m")))
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", ["<html>", "[]"])
def test_a_base_url_that_is_no_such_server_is_named(elsewhere: Callable[[str], Client], body: str) -> None:
    with canned(http_answer(body)) as (url, _), pytest.raises(ServerError, match="did not answer with") as caught:
        elsewhere(url).models()
    assert "Check base_url" in str(caught.value)


def test_a_server_without_models_is_named(elsewhere: Callable[[str], Client]) -> None:
    with canned(http_answer('{"data": []}')) as (url, _), pytest.raises(ServerError, match="offers no model"):
        list(elsewhere(url).stream(ask()))


def test_a_base_url_that_cannot_be_reached(elsewhere: Callable[[str], Client]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = elsewhere(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
        with pytest.raises(ServerLost, match="cannot be reached"):
            client.models()


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://127.0.0.1/v1", "http://[::1/v1"])
def test_a_base_url_that_is_no_url(elsewhere: Callable[[str], Client], url: str) -> None:
    with pytest.raises(BadOption, match="no address"):
        elsewhere(url).models()
