"""The HTTP app, served by a real uvicorn on a free port: its doors, its answers, and clients that go away."""

import contextlib
import gzip
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_gemma.discovery import ServerInfo, read_server_file
from jupyter_gemma.echo import ECHO_MODELS, EchoEngine, Reply
from jupyter_gemma.errors import BadCheckpoint, BadImage, ServerStartFailed
from jupyter_gemma.server import app as server_app
from jupyter_gemma.server import guard, routes
from jupyter_gemma.server.app import create_app, serve
from jupyter_gemma.server.worker import Worker
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, ModelCard, Progress, ProgressCallback, Request
from jupyter_gemma.wire.answer import AnswerDecoder, card_from_json
from jupyter_gemma.wire.request import MAX_BODY_BYTES

MakeWorker = Callable[..., Worker]
Serving = Callable[[Worker], Any]
WaitUntil = Callable[[Callable[[], object]], None]
LONG = Reply(tuple(Chunk(text=f"{number} ") for number in range(10_000)), delay=0.01)
HELLO = {"messages": [{"role": "user", "content": "Hello there"}]}


def all_routes() -> list[tuple[str, str]]:
    info = ServerInfo(1, "http://127.0.0.1:1", "token", "1", 0.0)
    worker = Worker(lambda name, progress: EchoEngine(), lambda: [], lambda name: ModelCard(name))
    try:
        app = create_app(worker, info, lambda: None)
    finally:
        worker.close()
    paths = [
        ("GET", "/openapi.json"),
        *((verb.upper(), path) for path, item in app.openapi()["paths"].items() for verb in item),
    ]
    return [*paths, ("GET", "/nowhere"), ("GET", "/docs")]


ROUTES = all_routes()


@pytest.fixture
def echo_server(make_worker: MakeWorker, serving: Serving) -> Any:
    return serving(make_worker({"echo": EchoEngine()}))


def lines_of(server: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
    with server.http.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [line for line in response.iter_lines() if line]


# -- the doors ---


def test_the_route_list_is_complete() -> None:
    expected = {
        "/v1/models",
        "/v1/models/{name}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/audio/transcriptions",
    }
    expected |= {f"/gemma/{name}" for name in ("status", "metrics", "load", "unload", "stop", "tokenize", "render")}
    assert expected <= {path for _, path in ROUTES}


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Basic {token}", "bearer {token}", "{token}"]
)
def test_every_route_wants_the_token(echo_server: Any, authorization: str | None) -> None:
    sent = {} if authorization is None else {"Authorization": authorization.format(token=echo_server.info.token)}
    with httpx.Client(base_url=echo_server.info.url, headers=sent, trust_env=False) as bare:
        for method, path in ROUTES:
            response = bare.request(method, path)
            assert response.status_code == 401, path
            assert response.json()["error"]["code"] == "not_authorized"


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1", "127.0.0.1:1", "localhost.example.org:{port}", "0.0.0.0:{port}", ""]
)
def test_another_host_is_refused_even_with_the_token(echo_server: Any, host: str) -> None:
    port = echo_server.http.base_url.port
    for method, path in ROUTES:
        response = echo_server.http.request(method, path, headers={"Host": host.format(port=port)})
        assert response.status_code == 403, path
        assert response.json()["error"]["code"] == "not_authorized"


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}"])
def test_the_local_names_are_let_in(echo_server: Any, host: str) -> None:
    headers = {"Host": host.format(port=echo_server.http.base_url.port)}
    assert echo_server.http.get("/v1/models", headers=headers).status_code == 200


def test_the_token_in_the_url_is_refused_even_beside_the_header(echo_server: Any) -> None:
    for query in (f"token={echo_server.info.token}", f"x={echo_server.info.token}&y=1"):
        response = echo_server.http.get(f"/v1/models?{query}")
        assert response.status_code == 401
        assert "URL" in response.json()["error"]["message"]


def test_a_compressed_body_is_refused(echo_server: Any) -> None:
    bomb = gzip.compress(bytes(10_000_000))
    response = echo_server.http.post("/v1/chat/completions", content=bomb, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 400
    assert "compressed" in response.json()["error"]["message"]


def test_no_web_page_is_let_in(echo_server: Any) -> None:
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    answers = [
        echo_server.http.options("/v1/chat/completions", headers=headers),
        echo_server.http.get("/v1/models", headers=headers),
    ]
    assert answers[0].status_code == 405
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_errors_have_openais_body(echo_server: Any) -> None:
    post = echo_server.http.post
    chat = "/v1/chat/completions"
    cases = [
        (echo_server.http.get("/nowhere"), 404, "invalid_request", "/nowhere"),
        (echo_server.http.get(chat), 405, "invalid_request", "GET"),
        (post(chat, content=b"{"), 400, "invalid_request", "not JSON"),
        (post(chat, json={}), 400, "invalid_request", "messages is missing"),
        (post(chat, json={**HELLO, "n": 99}), 400, "invalid_option", "n is 99"),
        (post(chat, json={**HELLO, "stream": 1}), 400, "invalid_request", "stream"),
        (post(chat, json={**HELLO, "model": "gpt"}), 404, "model_not_found", "'gpt'"),
        (post(chat, json={**HELLO, "model": "gpt", "stream": True}), 404, "model_not_found", "'gpt'"),
        (post("/gemma/load", json={"model": 3}), 400, "invalid_request", "model"),
        (post("/gemma/load", json={"model": "gpt"}), 404, "model_not_found", "'gpt'"),
    ]
    for response, status, code, named in cases:
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, code)
        assert named in error["message"]


def test_a_body_that_is_too_large_is_refused(echo_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.read_body, "__defaults__", (100,))
    pieces = (b" " * 60 for _ in range(3))
    for content in (b" " * 101, pieces):
        response = echo_server.http.post("/v1/chat/completions", content=content)
        assert response.status_code == 400
        assert "more than 100 bytes" in response.json()["error"]["message"]
    assert echo_server.http.post("/v1/chat/completions", json=HELLO).status_code == 200


def test_a_body_announced_as_too_large_is_not_read(echo_server: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", echo_server.http.base_url.port, timeout=10)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Authorization", f"Bearer {echo_server.info.token}")
        connection.putheader("Content-Length", str(MAX_BODY_BYTES + 1))
        connection.endheaders()
        # The body never comes; an answer shows that nobody waits for it.
        assert connection.getresponse().status == 400


# -- answers ---


def test_models_come_with_their_cards(echo_server: Any) -> None:
    answer = echo_server.http.get("/v1/models").json()
    assert answer["object"] == "list"
    assert [card_from_json(entry) for entry in answer["data"]] == [ModelCard("echo")]


def test_a_whole_answer(echo_server: Any) -> None:
    answer = echo_server.http.post("/v1/chat/completions", json=HELLO).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello there"}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["model"] == "echo"
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["completion_tokens"] == 2


def test_a_streamed_answer(echo_server: Any) -> None:
    body = {**HELLO, "stream": True, "stream_options": {"include_usage": True}}
    lines = lines_of(echo_server, body)
    assert lines[0] == ': {"progress": {"phase": "loading echo", "done": 0, "total": 0}}'
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1:-1]]
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": "Hello"}
    assert deltas[1:] == [{"content": " there"}, {}]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 4
    assert len({event["id"] for event in events}) == 1


def test_silence_is_filled_with_comments(
    make_worker: MakeWorker, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "KEEP_ALIVE_SECONDS", 0.02)
    reply = Reply((Chunk(text="a"), Chunk(text="b")), delay=0.2)
    server = serving(make_worker({"echo": EchoEngine(script=[reply])}))
    lines = lines_of(server, {**HELLO, "stream": True})
    assert lines.count(": waiting") >= 4
    decoder = AnswerDecoder()
    assert "".join(chunk.text for line in lines for chunk in decoder.feed(line)) == "ab"


def test_an_error_before_the_first_piece_has_its_status(make_worker: MakeWorker, serving: Serving) -> None:
    failing = Reply(error=BadImage("The picture has 0 pixels.", "Send another."))
    server = serving(make_worker({"echo": EchoEngine(script=[Reply(), failing, failing])}))
    server.http.post("/v1/chat/completions", json=HELLO)
    for stream in (True, False):
        response = server.http.post("/v1/chat/completions", json={**HELLO, "stream": stream})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_image"
        assert response.json()["error"]["fix"] == "Send another."


def test_an_error_amid_the_answer_is_its_last_event(make_worker: MakeWorker, serving: Serving) -> None:
    reply = Reply((Chunk(text="a"),), error=BadImage("The second picture has 0 pixels."))
    server = serving(make_worker({"echo": EchoEngine(script=[reply])}))
    lines = lines_of(server, {**HELLO, "stream": True})
    assert '"content": "a"' in lines[-2]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "invalid_image"
    assert server.http.post("/v1/chat/completions", json=HELLO).status_code == 200


def test_a_bug_gives_500_without_its_inside(make_worker: MakeWorker, serving: Serving) -> None:
    class Buggy(EchoEngine):
        def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
            raise KeyError("secret")

    server = serving(make_worker({"echo": Buggy()}))
    response = server.http.post("/v1/chat/completions", json=HELLO)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_bug_in_a_route_gives_500_too(serving: Serving, make_worker: MakeWorker) -> None:
    worker = make_worker({"echo": EchoEngine()})
    server = serving(worker)
    worker.models = lambda: 1 / 0  # type: ignore[assignment,return-value]
    response = server.http.get("/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "division" not in response.text


# -- clients that go away, and others that wait ---


def test_a_client_that_leaves_stops_the_engine_within_a_step(
    make_worker: MakeWorker, serving: Serving, wait_until: WaitUntil
) -> None:
    class Watching(EchoEngine):
        """Notes how many steps came after the cancel event."""

        late = 0

        def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
            for chunk in super().stream(request, cancel):
                self.late += cancel.is_set()
                yield chunk

    engine = Watching(script=[LONG])
    server = serving(make_worker({"echo": engine}))
    with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as response:
        next(line for line in response.iter_lines() if '"content": "3 "' in line)
    wait_until(lambda: engine.cancelled)
    assert engine.late == 1  # the chunk that says "cancelled"
    assert engine.steps < 100
    assert server.http.post("/v1/chat/completions", json=HELLO).json()["choices"][0]["finish_reason"] == "stop"


def test_a_client_that_leaves_a_whole_answer_stops_the_engine(
    make_worker: MakeWorker, serving: Serving, wait_until: WaitUntil
) -> None:
    engine = EchoEngine(script=[LONG])
    server = serving(make_worker({"echo": engine}))
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/chat/completions", json=HELLO, timeout=0.3)
    wait_until(lambda: engine.cancelled)


def test_a_client_that_leaves_during_a_silence_stops_the_engine(
    make_worker: MakeWorker, serving: Serving, wait_until: WaitUntil
) -> None:
    reply = Reply((Chunk(text="never"),), delay=60)
    engine = EchoEngine(script=[reply])
    server = serving(make_worker({"echo": engine}))
    with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as response:
        next(response.iter_lines())  # loading
    wait_until(lambda: engine.cancelled)


def test_a_waiting_client_sees_the_loading(make_worker: MakeWorker, serving: Serving, wait_until: WaitUntil) -> None:
    go_on = threading.Event()

    def load(name: str, progress: ProgressCallback) -> EchoEngine:
        progress(Progress("reading weights", 1, 2))
        assert go_on.wait(10)
        return EchoEngine()

    server = serving(make_worker({"echo": EchoEngine()}, load))
    weights = {"phase": "reading weights", "done": 1, "total": 2}
    with server.http.stream("POST", "/gemma/load", json={}) as loading:
        wait_until(lambda: server.http.get("/gemma/status").json()["progress"] == weights)
        with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as waiting:
            lines = waiting.iter_lines()
            assert next(lines) == ': {"progress": {"phase": "reading weights", "done": 1, "total": 2}}'
            go_on.set()
            assert "data: [DONE]" in list(lines)
        seen = [line for line in loading.iter_lines() if line]
    assert ': {"progress": {"phase": "reading weights", "done": 1, "total": 2}}' in seen
    assert json.loads(seen[-2].removeprefix("data: "))["model"] == "echo"


# -- several choices, forms, chances, texts ---


def test_several_choices_come_as_one_answer(make_worker: MakeWorker, serving: Serving) -> None:
    script = [Reply((Chunk(text=f"{letter} "), Chunk(text=f"{letter}!"))) for letter in "abc"]
    engine = EchoEngine(script=[*script, *script])
    server = serving(make_worker({"echo": engine}))
    answer = server.http.post("/v1/chat/completions", json={**HELLO, "n": 3, "seed": 5}).json()
    assert sorted(choice["message"]["content"] for choice in answer["choices"]) == ["a a!", "b b!", "c c!"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == 2  # it is one prompt
    assert len({request.sampling.seed for request in engine.requests}) == 3
    body = {**HELLO, "n": 3, "stream": True, "stream_options": {"include_usage": True}}
    events = [json.loads(line[6:]) for line in lines_of(server, body) if line.startswith("data: {")]
    texts = ["", "", ""]
    for choice in (choice for event in events for choice in event["choices"]):
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert sorted(texts) == ["a a!", "b b!", "c c!"]
    assert events[-1]["usage"]["completion_tokens"] == 6
    assert events[-1]["choices"] == []


def test_leaving_stops_every_choice(make_worker: MakeWorker, serving: Serving, wait_until: WaitUntil) -> None:
    engine = EchoEngine(script=[LONG] * 3)
    server = serving(make_worker({"echo": engine}))
    with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "n": 3, "stream": True}) as response:
        next(line for line in response.iter_lines() if '"index": 2' in line)
    wait_until(lambda: engine.status().active == 0)
    assert engine.steps < 300


def test_the_form_of_an_answer_and_chances_reach_the_engine_and_back(echo_server: Any) -> None:
    def ask(**options: Any) -> Any:
        return echo_server.http.post("/v1/chat/completions", json={**HELLO, **options}).json()["choices"][0]

    assert ask(choice=["no", "yes"])["message"]["content"] == "no"
    assert json.loads(ask(response_format={"type": "json_object"})["message"]["content"]) == {"echo": "Hello there"}
    found = ask(logprobs=True, top_logprobs=1)["logprobs"]["content"]
    assert [entry["token"] for entry in found] == ["Hello", " there"]
    assert found[0]["top_logprobs"] == [{"token": "Hello", "logprob": -0.1, "bytes": list(b"Hello")}]
    assert "logprobs" not in ask()


def test_who_asks_is_told_to_the_engine(make_worker: MakeWorker, serving: Serving) -> None:
    engine = EchoEngine()
    server = serving(make_worker({"echo": engine}))
    for headers in ({}, {"X-Gemma-Client": "notebook-1"}):
        server.http.post("/v1/chat/completions", json=HELLO, headers=headers)
    assert [request.client for request in engine.requests] == ["", "notebook-1"]


@pytest.fixture
def base_server(make_worker: MakeWorker, serving: Serving) -> Any:
    """A server with a base model, and one that answers questions."""
    base = ModelCard("base", instruct=False)
    worker = make_worker({"chat": EchoEngine(), "base": EchoEngine(base)})
    worker.find = lambda name: base if name in ("", "base") else ModelCard(name)
    return serving(worker)


def test_a_base_model_continues_a_text(base_server: Any) -> None:
    body = {"prompt": "Once upon", "logprobs": 2, "n": 2}
    answer = base_server.http.post("/v1/completions", json=body).json()
    assert answer["object"] == "text_completion"
    assert [choice["text"] for choice in answer["choices"]] == ["Once upon"] * 2
    assert answer["choices"][0]["logprobs"]["tokens"] == ["Once", " upon"]
    assert answer["choices"][0]["logprobs"]["top_logprobs"][0] == {"Once": -0.1, "ecnO": -2.5}
    assert answer["usage"]["total_tokens"] == 6
    lines = lines_of(base_server, {"prompt": "Once upon", "stream": True}, "/v1/completions")
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(event["choices"][0]["text"] for event in events) == "Once upon"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert lines[-1] == "data: [DONE]"


def test_a_model_that_answers_does_not_continue(base_server: Any) -> None:
    response = base_server.http.post("/v1/completions", json={"prompt": "Once", "model": "chat"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported_input")
    assert "/v1/chat/completions" in response.json()["error"]["fix"]


# -- transcripts ---


@pytest.fixture
def transcribe(make_worker: MakeWorker, serving: Serving) -> Callable[..., httpx.Response]:
    """Upload a clip to an echo server that takes sound."""
    worker = make_worker({"echo": EchoEngine(ECHO_MODELS[0])})
    worker.find = lambda name: ModelCard(name or "echo", modalities=("text",) if name == "deaf" else ("text", "audio"))
    server = serving(worker)

    def send(clip: bytes = b"\r\n--RIFF\r\n\r\n", **fields: str) -> httpx.Response:
        answer: httpx.Response = server.http.post(
            "/v1/audio/transcriptions", files={"file": ("../../etc/passwd", clip)}, data=fields
        )
        return answer

    return send


def test_a_transcript_in_every_format(transcribe: Callable[..., httpx.Response]) -> None:
    words = "[sound of 12 bytes]"
    assert transcribe().json()["text"] == words
    assert transcribe().json()["usage"]["output_tokens"] == 4
    assert transcribe(response_format="text").text == words + "\n"
    detailed = transcribe(response_format="verbose_json").json()
    assert detailed["text"] == words
    assert detailed["segments"][1] == {"id": 1, "start": 1.0, "end": 2.0, "text": "of"}
    srt = transcribe(response_format="srt")
    assert srt.headers["content-type"].startswith("text/plain")
    assert srt.text.startswith("1\n00:00:00,000 --> 00:00:01,000\n[sound\n\n2\n")
    assert transcribe(response_format="vtt").text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n[sound\n\n")


def test_a_transcript_is_streamed(transcribe: Callable[..., httpx.Response]) -> None:
    lines = [line for line in transcribe(stream="true", prompt="Names: Ada").text.split("\n\n") if line]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(event["delta"] for event in events[:-1]).strip() == "[sound of 12 bytes] Names: Ada"
    assert events[1]["start"] == 1.0
    assert events[-1]["type"] == "transcript.text.done"
    assert events[-1]["text"] == "[sound of 12 bytes] Names: Ada"
    assert lines[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "deaf"}, "deaf takes no sound"),
        ({"response_format": "docx"}, "response_format is 'docx'"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": "nan"}, "temperature is 'nan'"),
        ({"stream": "maybe"}, "stream is 'maybe'"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities is 'word'"),
        ({"path": "/etc/passwd"}, "no field 'path'"),
    ],
)
def test_a_wrong_field_of_a_form_is_named(
    transcribe: Callable[..., httpx.Response], fields: dict[str, str], named: str
) -> None:
    response = transcribe(**fields)
    assert response.status_code == 400
    assert named in response.json()["error"]["message"]


def test_what_is_no_form_or_has_no_clip_is_refused(echo_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    post = echo_server.http.post
    path = "/v1/audio/transcriptions"
    cut = {"Content-Type": "multipart/form-data; boundary=x"}
    for response, named in (
        (post(path, json={"file": "a"}), "no form"),
        (post(path, data={"file": ""}, files={"other": b"a"}), "no field 'other'"),
        (post(path, files={"file": b""}), "no file"),
        (
            post(path, content=b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nRIFF', headers=cut),
            "cut short",
        ),
        (post(path, content=b"--x\r\n\r\nRIFF\r\n--x--", headers=cut), "no name"),
        (post(path, content=b"--x\r\n" * 100 + b"--x--", headers=cut), "too many"),
    ):
        assert response.status_code == 400
        assert named in response.json()["error"]["message"]
    monkeypatch.setattr(routes, "MAX_AUDIO_BYTES", 100)
    assert "more than 100 bytes" in post(path, files={"file": bytes(101)}).json()["error"]["message"]


# -- looking inside ---


def test_tokens_of_a_text(echo_server: Any) -> None:
    assert echo_server.http.post("/gemma/tokenize", json={"text": "a bcd"}).json() == {"tokens": [1, 3], "count": 2}
    for body, named in (({"text": 3}, "text must be text"), ({"text": "a", "txet": 1}, "no option 'txet'")):
        assert named in echo_server.http.post("/gemma/tokenize", json=body).json()["error"]["message"]


def test_the_exact_prompt_with_its_counts(echo_server: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "See"}, part]}]}
    assert echo_server.http.post("/gemma/render", json=body).json() == {
        "prompt": "user: See [picture of 8 bytes]\n",
        **{"prompt_tokens": 2, "text_tokens": 1, "image_tokens": 1, "audio_tokens": 0},
    }


def test_metrics_are_in_prometheus_form(echo_server: Any) -> None:
    empty = echo_server.http.get("/gemma/metrics").text
    assert "jupyter_gemma_model_loaded 0" in empty
    echo_server.http.post("/v1/chat/completions", json=HELLO)
    response = echo_server.http.get("/gemma/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = response.text.splitlines()
    values = {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}
    assert values["jupyter_gemma_requests_total"] == 1
    assert values["jupyter_gemma_memory_bytes"] > 1e6
    assert all(f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}" in lines for name in values)


def test_the_status_tells_the_engine_and_its_memory(echo_server: Any) -> None:
    assert echo_server.http.get("/gemma/status").json()["engine"] is None
    echo_server.http.post("/v1/chat/completions", json=HELLO)
    status = echo_server.http.get("/gemma/status").json()
    assert status["engine"]["requests"] == 1
    assert {"digest", "quantization", "tokens_per_second", "cache_bytes"} <= set(status["engine"])
    assert status["memory_bytes"] > 1e6


def test_the_document_describes_every_route(echo_server: Any) -> None:
    document = echo_server.http.get("/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/completions", "/gemma/render", "/gemma/tokenize"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["required"]
    assert document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]


# -- life ---


def test_load_status_and_unload(make_worker: MakeWorker, serving: Serving) -> None:
    engine = EchoEngine()
    server = serving(make_worker({"echo": engine}))
    assert server.http.get("/gemma/status").json()["state"] == "empty"
    lines = lines_of(server, {"model": "echo"}, "/gemma/load")
    assert json.loads(lines[-2].removeprefix("data: "))["state"] == "ready"
    status = server.http.get("/gemma/status").json()
    assert (status["state"], status["model"], status["version"]) == ("ready", "echo", "1.2.3")
    assert status["pid"] == server.info.pid
    assert status["started"] == server.info.started
    assert server.http.post("/gemma/unload").json()["state"] == "empty"
    assert engine.closed.is_set()


def test_loading_what_is_loaded_is_no_error(echo_server: Any) -> None:
    for _ in range(2):
        lines = lines_of(echo_server, {}, "/gemma/load")
        assert json.loads(lines[-2].removeprefix("data: "))["state"] == "ready"


def test_a_load_that_fails_says_why(make_worker: MakeWorker, serving: Serving) -> None:
    def load(name: str, progress: ProgressCallback) -> EchoEngine:
        raise BadCheckpoint("model.safetensors is truncated.", "Pull it again.")

    server = serving(make_worker({"echo": EchoEngine()}, load))
    lines = lines_of(server, {}, "/gemma/load")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "bad_checkpoint"
    response = server.http.post("/v1/chat/completions", json=HELLO)
    assert response.status_code == 422
    assert server.http.get("/gemma/status").json()["state"] == "error"


def test_stop_if_idle_leaves_a_busy_server(make_worker: MakeWorker, serving: Serving) -> None:
    server = serving(make_worker({"echo": EchoEngine(script=[LONG])}))
    with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content"' in line)
        assert server.http.post("/gemma/stop", json={"if_idle": True}).json()["state"] == "busy"
        assert server.thread.is_alive()


def test_a_server_that_nobody_uses_ends(make_worker: MakeWorker, serving: Serving, settings: Settings) -> None:
    settings.idle_exit = 0.3
    server = serving(make_worker({"echo": EchoEngine()}))
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert read_server_file(settings) is None


def test_a_unix_socket_takes_the_same_requests(
    make_worker: MakeWorker, serving: Serving, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "gemma.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    settings.unix_socket = str(path)
    server = serving(make_worker({"echo": EchoEngine()}))
    assert path.stat().st_mode & 0o777 == 0o600
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost") as bare:
        assert bare.get("/v1/models").status_code == 401
        headers = {"Authorization": f"Bearer {server.info.token}"}
        assert bare.get("/v1/models", headers=headers).status_code == 200
        assert bare.post("/v1/chat/completions", headers=headers, json=HELLO).status_code == 200
        assert bare.get("/v1/models", headers={**headers, "Host": "example.org"}).status_code == 403
    server.http.post("/gemma/stop")
    server.thread.join(10)
    assert not path.exists()


def test_small_answers_are_sent_at_once() -> None:
    with server_app._bind(0) as listener:
        # asyncio switches Nagle's algorithm off only for sockets that name their protocol.
        assert listener.proto == socket.IPPROTO_TCP


def test_what_is_no_dead_socket_is_left_alone(settings: Settings, tmp_path: Path, make_worker: MakeWorker) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    settings.unix_socket = str(path)
    with pytest.raises(ServerStartFailed, match=r"notes\.txt"):
        serve(make_worker({"echo": EchoEngine()}), settings, "1")
    assert path.read_text() == "mine"


def test_stop_ends_running_answers_and_removes_the_server_file(
    make_worker: MakeWorker, serving: Serving, settings: Settings
) -> None:
    engine = EchoEngine(script=[LONG])
    server = serving(make_worker({"echo": engine}))
    with server.http.stream("POST", "/v1/chat/completions", json={**HELLO, "stream": True}) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content"' in line)
        assert (
            httpx.post(server.info.url + "/gemma/stop", headers=server.http.headers, trust_env=False).json()["state"]
            == "stopping"
        )
        assert any('"finish_reason": "cancelled"' in line for line in lines)
    server.thread.join(10)
    assert not server.thread.is_alive()
    assert engine.closed.is_set()
    assert read_server_file(settings) is None
