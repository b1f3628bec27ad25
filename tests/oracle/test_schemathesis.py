"""Random requests made from the served OpenAPI document: no 5xx, no answer that cannot be read, no dead server."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from jupyter_gemma.discovery import ServerInfo, find_or_start, log_file, running_server
from jupyter_gemma.settings import load_settings

hypothesis = pytest.importorskip("hypothesis")
schemathesis = pytest.importorskip("schemathesis")

# By route; GEMMA_EXAMPLES asks for that many of each. Bodies of chats take the longest to invent.
EXAMPLES = {"/v1/chat/completions": 60, "/gemma/render": 30}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    """An echo server, whose model continues texts as well: so every route has requests that succeed."""
    state = {"engine": "echo", "model": "echo-base", "runtime_dir": str(tmp_path_factory.mktemp("state"))}
    settings = load_settings(state, environ={})
    info = find_or_start(settings)
    yield info
    assert running_server(settings) == info, "the server did not survive"
    log = log_file(settings).read_text()
    assert "internal error" not in log, log[-3000:]
    os.kill(info.pid, signal.SIGTERM)


@pytest.fixture(scope="module")
def document(server: ServerInfo) -> dict[str, Any]:
    """The served document."""
    headers = {"Authorization": f"Bearer {server.token}"}
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json", headers=headers, trust_env=False).json()
    return found


PLACES = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/gemma/render"),
    ("POST", "/gemma/tokenize"),
    ("POST", "/gemma/load"),
    ("POST", "/gemma/unload"),
    ("GET", "/gemma/status"),
    ("GET", "/gemma/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
]


def test_every_route_but_stop_is_tried(document: dict[str, Any]) -> None:
    found = {(verb.upper(), path) for path, item in document["paths"].items() for verb in item}
    assert found - {("POST", "/gemma/stop")} == set(PLACES)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), PLACES, ids=[path for _, path in PLACES])
def test_no_request_brings_the_server_down(
    server: ServerInfo, document: dict[str, Any], method: str, path: str
) -> None:
    operation = schemathesis.openapi.from_dict(document)[path][method]
    headers = {"Authorization": f"Bearer {server.token}"}
    seen: dict[int, int] = {}
    modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    strategy = hypothesis.strategies.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))
    count = int(os.environ.get("GEMMA_EXAMPLES", EXAMPLES.get(path, 150 if method == "POST" else 20)))

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def check(case: Any) -> None:
        response = case.call(base_url=server.url, headers=headers, timeout=20)
        seen[response.status_code] = seen.get(response.status_code, 0) + 1
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    check()
    print(path, seen)
    usual = 404 if "{name}" in path else 200  # no model has a random name
    assert seen[usual] > sum(seen.values()) / 50
