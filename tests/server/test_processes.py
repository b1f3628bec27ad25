"""Faults around real server processes: killed while they load or are waited for, crowds, clock jumps, other users."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_gemma.client import Client
from jupyter_gemma.discovery import ServerInfo, find_or_start, running_server, server_file
from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import ServerLost
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, Message, Progress, Request, TextPart

WaitUntil = Callable[[Callable[[], object]], None]
SLOW = "word " * 1000
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello there"}]}
needs_root = pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can become another user")


def ask(text: str = "Hi there", model: str = "") -> Request:
    return Request((Message("user", (TextPart(text),)),), model=model)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def http_of(server: ServerInfo) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=20)


# -- killed ---


def test_a_server_killed_while_loading_is_replaced_by_the_next_call(settings: Settings) -> None:
    client = Client(settings)
    server = find_or_start(settings)

    def kill(progress: Progress) -> None:
        if progress.done:
            os.kill(server.pid, signal.SIGKILL)

    with pytest.raises(ServerLost, match="started anew"):
        client.load("echo-slow", kill)
    assert text_of(list(client.stream(ask()))) == "Hi there"
    assert client.status()["pid"] != server.pid


def test_four_clients_of_a_killed_server_all_know_and_go_on_with_one(settings: Settings) -> None:
    server = find_or_start(settings)
    talking = threading.Barrier(5, timeout=20)

    def run(number: int) -> str:
        client = Client(settings)
        chunks = client.stream(ask(SLOW, "echo-slow"))
        next(chunk for chunk in chunks if chunk.text)
        talking.wait()
        with pytest.raises(ServerLost, match="started anew"):
            list(chunks)
        return text_of(list(client.stream(ask(f"again {number}"))))

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(run, number) for number in range(4)]
        talking.wait()
        os.kill(server.pid, signal.SIGKILL)
        assert [answer.result(40) for answer in answers] == [f"again {number}" for number in range(4)]
    found = running_server(settings)
    assert found is not None
    assert found.pid != server.pid


CALLER = """
from jupyter_gemma.client import Client
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import *
request = Request((Message("user", (TextPart("word " * 1000),)),), model="echo-slow")
for chunk in Client(load_settings({"engine": "echo"})).stream(request):
    if chunk.text:
        print(flush=True)
"""


def test_a_client_that_is_killed_mid_answer_frees_the_engine(settings: Settings, wait_until: WaitUntil) -> None:
    find_or_start(settings)
    status = Client(settings).status
    with subprocess.Popen([sys.executable, "-c", CALLER], stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        caller.stdout.readline()
        assert status()["running"] == 1
        caller.kill()
    wait_until(lambda: status()["running"] == 0)
    steps = status()["engine"]["steps"]
    assert steps < 900
    assert text_of(list(Client(settings).stream(ask(model="echo-slow")))) == "Hi there"
    assert status()["engine"]["steps"] == steps + 2


# -- clocks, users ---

CLOCK = """
import os, time
real = time.time
def jumping():
    try:
        with open(os.environ["CLOCK_OFFSET"]) as file:
            return real() + float(file.read())
    except (OSError, ValueError):
        return real()
time.time = jumping
"""


def test_a_clock_that_jumps_ends_and_unloads_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    offset = tmp_path / "offset"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CLOCK_OFFSET", str(offset))
    settings.keep_alive = settings.idle_exit = 600
    server = find_or_start(settings)
    client = Client(settings)
    answer = client.stream(ask("one two three four five six", "echo-slow"))
    next(chunk for chunk in answer if chunk.text)
    created = []
    for jump in (86400 * 365, -86400 * 365):
        offset.write_text(str(jump))
        with http_of(server) as http:
            created.append(http.post(CHAT, json={**HELLO, "model": "echo-slow"}).json()["created"])
        assert running_server(settings) == server
    assert text_of(list(answer)).strip() == "two three four five six"
    assert created[0] - created[1] > 86400 * 700  # the clock did jump
    assert client.status()["model"] == "echo-slow"


STRANGER = """
import http.client, json, os, sys
from urllib.parse import urlsplit
from jupyter_gemma.discovery import read_server_file
from jupyter_gemma.errors import ServerError
from jupyter_gemma.settings import load_settings
runtime, url = sys.argv[1:]
settings = load_settings({"runtime_dir": runtime})
"localhost".encode("idna")  # what is imported later may lie in a folder that only this user can read
os.setgid(65534)
os.setuid(65534)
try:
    read_server_file(settings)
except (ServerError, PermissionError) as error:
    print(type(error).__name__)
address = urlsplit(url)
for header in ({}, {"Authorization": "Bearer guess"}):
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.request("GET", "/v1/models", headers=header)
    print(connection.getresponse().status)
"""


@needs_root
@pytest.mark.parametrize("folder_is_open", [False, True])
def test_another_user_of_the_host_is_kept_out(settings: Settings, folder_is_open: bool) -> None:
    server = find_or_start(settings)
    folder = Path(settings.runtime_dir)
    assert folder.stat().st_mode & 0o077 == 0
    if folder_is_open:  # as in a runtime folder that somebody has shared
        for path in (folder, *folder.parents[:4]):
            path.chmod(path.stat().st_mode | 0o055)
    command = [sys.executable, "-c", STRANGER, str(folder), server.url]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    refusal, *statuses = done.stdout.split()
    assert refusal in ("ServerError", "PermissionError")
    assert statuses == ["401", "401"]


@needs_root
def test_a_server_file_planted_by_another_user_is_not_believed(settings: Settings) -> None:
    server = find_or_start(settings)
    os.chown(server_file(settings), 65534, 65534)
    with pytest.raises(Exception, match="belongs to another user"):
        Client(settings).status()
    os.chown(server_file(settings), 0, 0)
    assert running_server(settings) == server


# -- crowds ---


def test_two_hundred_slow_clients_keep_nobody_waiting(settings: Settings) -> None:
    server = find_or_start(settings)
    body = json.dumps(HELLO).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: {server.url.removeprefix('http://')}\r\nConnection: close\r\n"
        f"Authorization: Bearer {server.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    port = int(server.url.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall((head + body)[: 1 + number])  # some have not finished their first line
        with http_of(server) as http:
            assert http.post(CHAT, json=HELLO, timeout=5).status_code == 200
        for number, connection in enumerate(slow):
            connection.sendall((head + body)[1 + number :])
        answers = [connection.makefile("rb").read() for connection in slow]
    finally:
        for connection in slow:
            connection.close()
    assert all(answer.startswith(b"HTTP/1.1 200") and b"Hello there" in answer for answer in answers)


def test_two_hundred_clients_that_do_not_read_keep_nobody_waiting(
    settings: Settings, serving: Callable[..., Any], make_worker: Callable[..., Any], wait_until: WaitUntil
) -> None:
    long = Reply(tuple(Chunk(text="x" * 10_000) for _ in range(2000)))
    engine = EchoEngine(script=[long] * 200)
    server = serving(make_worker({"echo": engine}))
    port = server.http.base_url.port
    body = json.dumps({**HELLO, "stream": True}).encode()
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Authorization: Bearer {server.info.token}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    deaf = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(200)]
    try:
        for connection in deaf:
            connection.sendall(head + body)
        wait_until(lambda: engine.status().active == 200)
        answer = server.http.post(CHAT, json=HELLO, timeout=10)
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
    finally:
        for connection in deaf:
            connection.close()
    wait_until(lambda: engine.status().active == 0)


def mixed(http: httpx.Client, number: int) -> None:
    """One request of one of ten kinds; what must fail fails as it must."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    kinds: list[Callable[[], tuple[httpx.Response, int]]] = [
        lambda: (http.post(CHAT, json=HELLO), 200),
        lambda: (http.post(CHAT, json={**HELLO, "stream": True}), 200),
        lambda: (http.post(CHAT, json={"messages": [{"role": "user", "content": [picture]}]}), 200),
        lambda: (http.post(CHAT, json={**HELLO, "n": 2, "logprobs": True}), 200),
        lambda: (http.post(CHAT, json={**HELLO, "temperature": 9}), 400),
        lambda: (http.post(CHAT, content=b"{"), 400),
        lambda: (http.get("/gemma/metrics"), 200),
        lambda: (http.post("/gemma/render", json=HELLO), 200),
        lambda: (http.post("/v1/audio/transcriptions", files={"file": b"RIFF"}), 200),
        lambda: (http.get("/nowhere"), 404),
    ]
    response, status = kinds[number % len(kinds)]()
    assert response.status_code == status, response.text


@pytest.mark.slow
def test_ten_thousand_requests_through_four_connections_leave_the_memory_flat(settings: Settings) -> None:
    server = find_or_start(settings)
    sizes = []
    https = [http_of(server) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for batch in range(40):

            def run(number: int, batch: int = batch) -> None:
                for request in range(batch * 62 + number, batch * 62 + number + 63):
                    mixed(https[number], request)

            list(pool.map(run, range(4)))
            sizes.append(https[0].get("/gemma/status").json()["memory_bytes"])
    for http in https:
        http.close()
    second, last = max(sizes[10:20]), max(sizes[30:40])
    print(f"second quarter {second / 1e6:.1f} MB, last quarter {last / 1e6:.1f} MB")
    assert last <= 1.02 * second
