"""Nothing leaves this machine, and no path from a request is opened: a real server with the demo model is watched.

Python's audit events (PEP 578) of the server process are written down: each file opened, each address connected to.
"""

import io
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from jupyter_gemma.client import Client
from jupyter_gemma.discovery import find_or_start
from jupyter_gemma.settings import load_settings

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
MARK = "marked-by-a-request"
WATCH = """
import os, sys
log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def watch(event, arguments):
    if event in ("open", "socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
        os.write(log, (event + " " + repr(arguments) + "\\n").encode("utf-8", "replace"))
sys.addaudithook(watch)
"""


@dataclass
class Watched:
    """A server whose process is watched, and what was seen."""

    http: httpx.Client
    log: Path

    def seen(self, event: str) -> list[str]:
        return [line for line in self.log.read_text(encoding="utf-8").splitlines() if line.startswith(f"{event} ")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    (folder / "sitecustomize.py").write_text(WATCH)
    state = {"runtime_dir": str(folder / "runtime"), "models_dir": str(folder / "models"), "threads": 1}
    settings = load_settings({**state, "cache_memory": "200MB", "model": "demo"}, environ={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("AUDIT_LOG", str(folder / "audit"))
        server = find_or_start(settings)
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as http:
        yield Watched(http, folder / "audit")
    Client(settings).stop_server()


def ask(content: Any, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 3, **options}


def clip() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(range(256)) * 100)
    return out.getvalue()


def test_no_path_from_a_request_is_opened(watched: Watched) -> None:
    path = f"/tmp/{MARK}"
    url = f"file://{path}"
    schema = {"$ref": url, "properties": {"a": {"$ref": f"{path}#/a"}}}
    tool = {"type": "function", "function": {"name": path, "parameters": schema}}
    bodies = [
        ask(path),
        ask(url, model=path),
        ask("Hi", model=f"../../../..{path}"),
        ask("Hi", user=path, stop=[path]),
        ask("Hi", tools=[tool]),
        ask("Hi", response_format={"type": "json_schema", "json_schema": {"name": path, "schema": schema}}),
        ask([{"type": "image_url", "image_url": {"url": url}}]),
        ask([{"type": "image_url", "image_url": {"url": path}}]),
        ask([{"type": "input_audio", "input_audio": {"data": path, "format": path}}]),
    ]
    for body in bodies:
        assert watched.http.post(CHAT, json=body).status_code < 500
    for name in (path, f"../../{MARK}"):
        form = {"files": {"file": (name, clip())}, "data": {"prompt": path, "language": path}}
        assert watched.http.post("/v1/audio/transcriptions", **form).status_code == 200  # type: ignore[arg-type]
        assert watched.http.post("/gemma/load", json={"model": name}).status_code == 404
        assert watched.http.get(f"/v1/models/{quote(name, safe='')}").status_code == 404
    assert watched.seen("open"), "the watch works"
    assert [line for line in watched.seen("open") if MARK in line] == []
    assert watched.seen("subprocess.Popen") + watched.seen("os.system") == []


def test_the_server_connects_to_nothing(watched: Watched) -> None:
    for body in (
        ask("Hello"),
        ask([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
        ask("See https://example.org", stream=True),
        ask(
            "Hi", response_format={"type": "json_schema", "json_schema": {"schema": {"$ref": "https://example.org/s"}}}
        ),
    ):
        assert watched.http.post(CHAT, json=body).status_code < 500
    assert watched.http.get("/v1/models").status_code == 200
    assert watched.seen("socket.connect") + watched.seen("socket.sendto") == []


CLIENT = """
import sys
found = []
def watch(event, arguments):
    if event == "socket.connect":
        found.append(arguments[1][0])
sys.addaudithook(watch)
from jupyter_gemma.client import Client
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import Message, Request, TextPart
client = Client(load_settings({"engine": "echo"}))
text = "".join(chunk.text for chunk in client.stream(Request((Message("user", (TextPart("Hi there"),)),))))
client.models(), client.status(), client.stop_server()
print(text, sorted(set(found)))
"""


def test_a_client_connects_to_this_machine_only(tmp_path: Path) -> None:
    environment = {**os.environ, **{f"JUPYTER_{name}_DIR": str(tmp_path) for name in ("RUNTIME", "DATA", "CONFIG")}}
    environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://192.0.2.1:9")
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    assert done.stdout == "Hi there ['127.0.0.1']\n"


# Brings up the loopback device of a new network namespace (ioctl SIOCSIFFLAGS of netdevice(7)), then runs pytest.
ALONE = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14s", b"lo", 1, b""))
assert [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
"""


def may_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_unshare(), reason="no network namespace may be made here")
def test_the_core_of_this_suite_passes_with_no_network(tmp_path: Path) -> None:
    files = [str(ROOT / "tests" / "server" / name) for name in ("test_client.py", "test_discovery.py")]
    command = ["unshare", "-n", sys.executable, "-c", ALONE, f"--basetemp={tmp_path / 'inner'}", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
