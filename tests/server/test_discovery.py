"""The server file, whom it is believed, and the start lock."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyter_gemma import discovery
from jupyter_gemma.discovery import (
    ServerInfo,
    find_or_start,
    is_older,
    read_server_file,
    remove_server_file,
    running_server,
    server_file,
    write_server_file,
)
from jupyter_gemma.echo import EchoEngine, Reply
from jupyter_gemma.errors import ServerError, ServerLost, ServerNotRunning, ServerStartFailed
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.types import Chunk, Progress

posix = pytest.mark.skipif(os.name == "nt", reason="Windows keeps the folder private")


def entry(**changes: Any) -> ServerInfo:
    return replace(ServerInfo(os.getpid(), "http://127.0.0.1:9", "secret-token", "1.0", 12.5), **changes)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_file_is_private_and_says_what_was_written(settings: Settings) -> None:
    assert read_server_file(settings) is None
    write_server_file(settings, entry())
    assert read_server_file(settings) == entry()
    assert server_file(settings).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in Path(settings.runtime_dir).iterdir()] == [server_file(settings).name]
    assert "secret-token" not in repr(entry())


def test_the_umask_does_not_widen_or_narrow_it(settings: Settings) -> None:
    before = os.umask(0)
    try:
        write_server_file(settings, entry())
    finally:
        os.umask(before)
    assert server_file(settings).stat().st_mode & 0o777 == 0o600


def test_a_new_announcement_replaces_the_old_one(settings: Settings) -> None:
    write_server_file(settings, entry())
    write_server_file(settings, entry(started=13.0))
    assert read_server_file(settings) == entry(started=13.0)


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_file_that_others_can_read_or_write_is_refused(settings: Settings, mode: int) -> None:
    write_server_file(settings, entry())
    server_file(settings).chmod(mode)
    with pytest.raises(ServerError, match="Other users can read"):
        running_server(settings)


@posix
def test_a_file_of_another_user_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write_server_file(settings, entry())
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    with pytest.raises(ServerError, match="belongs to another user"):
        running_server(settings)


@posix
def test_a_link_is_refused(settings: Settings, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("{}")
    server_file(settings).parent.mkdir(parents=True)
    server_file(settings).symlink_to(target)
    with pytest.raises(ServerError, match="cannot be used"):
        read_server_file(settings)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"unknown": 1}'])
def test_a_file_with_something_else_in_it_names_no_server(settings: Settings, content: str) -> None:
    write_server_file(settings, entry())
    server_file(settings).write_text(content)
    assert running_server(settings) is None


def test_only_the_own_announcement_is_removed(settings: Settings) -> None:
    write_server_file(settings, entry())
    remove_server_file(settings, entry(started=99.0))
    assert read_server_file(settings) == entry()
    remove_server_file(settings, entry())
    remove_server_file(settings, entry())
    assert not server_file(settings).exists()


def test_a_dead_process_is_no_server_and_is_not_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_confirms", lambda info: pytest.fail("the port may be somebody else's by now"))
    write_server_file(settings, entry(pid=dead_pid()))
    assert running_server(settings) is None


def test_a_living_process_that_is_no_server_is_not_believed(settings: Settings) -> None:
    with socket.socket() as bound:  # bound, and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        write_server_file(settings, entry(url=f"http://127.0.0.1:{bound.getsockname()[1]}"))
        assert running_server(settings) is None


def test_a_server_is_believed_if_it_confirms_its_entry(
    settings: Settings, serving: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    info = serving(make_worker({"echo": EchoEngine()})).info
    assert running_server(settings) == info
    for change in ({"token": "other"}, {"started": 1.0}):
        write_server_file(settings, replace(info, **change))
        assert running_server(settings) is None
    write_server_file(settings, info)


def test_a_server_that_does_not_answer_is_not_replaced(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        write_server_file(settings, entry(url=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(ServerLost, match=f"process {os.getpid()}.* does not answer"):
            find_or_start(settings)


@pytest.mark.parametrize(
    ("version", "older"), [("0.0.9", True), ("99.0", False), ("0.0.1rc1", True), ("0.1.0", False), ("", True)]
)
def test_versions_are_compared_as_numbers(version: str, older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.1.0")
    assert is_older(version) is older
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.10.0")
    assert is_older("0.9.0")


def test_an_idle_older_server_is_replaced(
    settings: Settings, serving: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    old = serving(make_worker({"echo": EchoEngine()}), "0.0.1")
    found = find_or_start(settings)
    assert found.pid != os.getpid()
    assert found.version == importlib.metadata.version("jupyter-gemma")
    old.thread.join(10)
    assert not old.thread.is_alive()


def test_a_busy_older_server_is_waited_for_and_used_if_it_stays_busy(
    settings: Settings, serving: Callable[..., Any], make_worker: Callable[..., Any]
) -> None:
    long = Reply(tuple(Chunk(text=f"{number} ") for number in range(10_000)), delay=0.01)
    old = serving(make_worker({"echo": EchoEngine(script=[long])}), "0.0.1")
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    seen: list[Progress] = []
    with old.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(line for line in lines if '"content"' in line)
        settings.start_timeout = 0.3
        assert find_or_start(settings, seen.append) == old.info
        assert {progress.phase for progress in seen} == {"waiting for the answers of the older model server 0.0.1"}
    settings.start_timeout = 30
    assert find_or_start(settings).pid != os.getpid()  # as soon as the answer is given up


@pytest.mark.parametrize(("version", "may_start"), [("99.0", True), ("0.0.1", False)])
def test_a_newer_server_is_used_and_an_older_one_where_none_may_be_started(
    settings: Settings, serving: Callable[..., Any], make_worker: Callable[..., Any], version: str, may_start: bool
) -> None:
    settings.start_server = may_start
    server = serving(make_worker({"echo": EchoEngine()}), version)
    assert find_or_start(settings) == server.info


def test_nothing_is_started_where_that_is_switched_off(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_launch", lambda settings: pytest.fail("a server was started"))
    settings.start_server = False
    with pytest.raises(ServerNotRunning, match="jupyter gemma serve"):
        find_or_start(settings)


def test_a_starter_waits_for_the_lock_of_another(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_launch", lambda settings: pytest.fail("a server was started"))
    settings.start_timeout = 0.1
    seen: list[Progress] = []
    code = "import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, 2); print(flush=True); sys.stdin.read()"
    path = server_file(settings).with_suffix(".lock")
    path.parent.mkdir(parents=True)
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ServerStartFailed, match="Another process"):
            find_or_start(settings, seen.append)
        holder.kill()
    assert "another process" in seen[0].phase


def test_a_started_server_gets_the_settings_but_no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JUPYTER_GEMMA_API_KEY", "sk-secret")
    monkeypatch.setenv("JUPYTER_GEMMA_MODEL", "from-the-environment")
    given = {
        "model": "demo",
        "max_memory": {"cpu": "6GB"},
        "models_dir": "models",
        "base_url": "https://example.org",
        "prefill_chunk": 64,
    }
    settings = load_settings({**given, "api_key": "sk-secret"}, environ={})
    environment = discovery._environment(settings)
    assert "sk-secret" not in json.dumps(environment)
    received = load_settings(
        environ={key: value for key, value in environment.items() if key.startswith("JUPYTER_GEMMA")}
    )
    assert (received.model, received.max_memory, received.prefill_chunk) == ("demo", {"cpu": "6GB"}, 64)
    assert received.models_dir == str(tmp_path / "models")
    assert received.base_url == ""
