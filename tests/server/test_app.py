"""The HTTP app, served by a real uvicorn on a free port: its doors, its answers, and clients that go away."""

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from jupyter_gemma.discovery import ServerInfo, read_server_file
from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import BadCheckpoint, BadImage
from jupyter_gemma.server import app as server_app
from jupyter_gemma.server.app import create_app
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


def routes() -> list[tuple[str, str]]:
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


ROUTES = routes()


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
    expected = {"/v1/models", "/v1/chat/completions", "/gemma/status", "/gemma/load", "/gemma/unload", "/gemma/stop"}
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
        (post(chat, json={**HELLO, "n": 2}), 400, "invalid_option", "option n"),
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
    monkeypatch.setattr(server_app, "MAX_BODY_BYTES", 100)
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
    monkeypatch.setattr(server_app, "KEEP_ALIVE_SECONDS", 0.02)
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


def test_a_load_that_fails_says_why(make_worker: MakeWorker, serving: Serving) -> None:
    def load(name: str, progress: ProgressCallback) -> EchoEngine:
        raise BadCheckpoint("model.safetensors is truncated.", "Pull it again.")

    server = serving(make_worker({"echo": EchoEngine()}, load))
    lines = lines_of(server, {}, "/gemma/load")
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "bad_checkpoint"
    response = server.http.post("/v1/chat/completions", json=HELLO)
    assert response.status_code == 422
    assert server.http.get("/gemma/status").json()["state"] == "error"


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
