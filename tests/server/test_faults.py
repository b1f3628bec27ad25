"""Real server processes (with the echo engine) that start, die and come back."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_gemma.client import Client
from jupyter_gemma.discovery import (
    ServerInfo,
    find_or_start,
    log_file,
    read_server_file,
    running_server,
    server_file,
    write_server_file,
)
from jupyter_gemma.errors import BadCheckpoint, ServerLost, ServerStartFailed
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, Message, Progress, Request, TextPart

WaitUntil = Callable[[Callable[[], object]], None]
SLOW = "word " * 1000
STARTER = """
from jupyter_gemma.discovery import find_or_start
from jupyter_gemma.settings import load_settings
server = find_or_start(load_settings({"engine": "echo", "start_timeout": 30.0}))
print(server.pid, server.url)
"""


def ask(text: str = "Hi there", model: str = "") -> Request:
    return Request((Message("user", (TextPart(text),)),), model=model)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_first_question_starts_a_server_and_the_next_uses_it(settings: Settings) -> None:
    seen: list[Progress] = []
    client = Client(settings, seen.append)
    assert text_of(list(client.stream(ask()))) == "Hi there"
    assert seen[0].phase == "starting the model server"
    first = running_server(settings)
    assert text_of(list(Client(settings).stream(ask()))) == "Hi there"
    assert running_server(settings) == first


def test_two_starters_at_once_make_one_server(settings: Settings, wait_until: WaitUntil) -> None:
    starters = [subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {starter.communicate(timeout=40)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert len(outputs) == 1
    info = read_server_file(settings)
    assert info is not None
    assert outputs == {f"{info.pid} {info.url}"}
    # The starters have ended, and the server lives on.
    assert Client(settings).status()["pid"] == info.pid


def test_a_server_killed_while_answering_is_replaced_by_the_next_call(
    settings: Settings, wait_until: WaitUntil
) -> None:
    client = Client(settings)
    answer = client.stream(ask(SLOW, "echo-slow"))
    next(chunk for chunk in answer if chunk.text)
    killed = client.status()["pid"]
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(ServerLost, match="started anew"):
        list(answer)
    assert text_of(list(client.stream(ask()))) == "Hi there"
    assert client.status()["pid"] != killed


def test_the_file_of_a_dead_server_is_replaced(settings: Settings) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    write_server_file(settings, ServerInfo(process.pid, "http://127.0.0.1:9", "token", "0", 0.0))
    assert text_of(list(Client(settings).stream(ask()))) == "Hi there"
    info = read_server_file(settings)
    assert info is not None
    assert info.pid != process.pid


def test_sigterm_amid_an_answer_ends_the_server_in_order(settings: Settings, wait_until: WaitUntil) -> None:
    server = find_or_start(settings)
    answer = Client(settings).stream(ask(SLOW, "echo-slow"))
    next(chunk for chunk in answer if chunk.text)
    os.kill(server.pid, signal.SIGTERM)
    assert list(answer)[-1].finish == "cancelled"
    wait_until(lambda: gone(server.pid))
    assert not server_file(settings).exists()
    assert "Traceback" not in log_file(settings).read_text()


def test_stop_ends_the_process(settings: Settings, wait_until: WaitUntil) -> None:
    server = find_or_start(settings)
    assert Client(settings).stop_server()
    wait_until(lambda: gone(server.pid))
    assert not server_file(settings).exists()


def test_a_server_that_cannot_start_is_quoted(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings.port = taken.getsockname()[1]
        with pytest.raises(ServerStartFailed, match="exit status 1") as caught:
            find_or_start(settings)
    assert f"Port {settings.port} is taken." in str(caught.value)
    assert str(log_file(settings)) in str(caught.value)
    assert not server_file(settings).exists()


def test_a_server_that_takes_too_long_is_ended(settings: Settings) -> None:
    settings.start_timeout = 0.01
    with pytest.raises(ServerStartFailed, match=r"within 0.01 seconds"):
        find_or_start(settings)
    assert running_server(settings) is None


def test_what_the_server_writes_is_private(settings: Settings) -> None:
    find_or_start(settings)
    modes = {path.name: path.stat().st_mode & 0o077 for path in Path(settings.runtime_dir).iterdir()}
    assert len(modes) == 3
    assert set(modes.values()) == {0}


def test_a_model_that_cannot_be_loaded_leaves_a_usable_server(settings: Settings) -> None:
    client = Client(settings)
    with pytest.raises(BadCheckpoint, match="broken on purpose"):
        list(client.stream(ask(model="echo-broken")))
    assert client.status()["state"] == "error"
    assert text_of(list(client.stream(ask()))) == "Hi there"


def test_loading_is_seen_by_who_waits(settings: Settings) -> None:
    seen: list[Progress] = []
    assert Client(settings).load("echo-slow", seen.append)["model"] == "echo-slow"
    assert seen[1:] == [Progress("loading echo-slow", step, 5) for step in range(1, 6)]


def test_files_beside_the_notebook_do_not_break_the_server(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "types", "token", "fastapi"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the notebook folder')")
    monkeypatch.chdir(tmp_path)
    find_or_start(settings)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_echo_server_loads_no_torch(settings: Settings) -> None:
    server = find_or_start(settings)
    assert text_of(list(Client(settings).stream(ask()))) == "Hi there"
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "pydantic" in maps  # so the names of its libraries are there to be seen
    assert "torch" not in maps
