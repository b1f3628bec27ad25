"""Fixtures: settings in a temporary folder, workers, and a served app in a thread; every process is ended."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from jupyter_gemma.discovery import ServerInfo, read_server_file, running_server
from jupyter_gemma.echo import EchoEngine
from jupyter_gemma.errors import UnknownModel
from jupyter_gemma.server.app import serve
from jupyter_gemma.server.worker import Worker
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.types import EngineLoader, ModelCard, Progress


@pytest.fixture
def anyio_backend() -> str:
    """The worker is written for asyncio, as uvicorn runs it."""
    return "asyncio"


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for a state of another thread or process that has no event to wait for."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "this did not come true within 20 seconds"
            time.sleep(0.005)

    return wait


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings for an echo server of its own; the server that a test leaves behind is killed."""
    for name in ("RUNTIME", "DATA", "CONFIG"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    values = load_settings({"engine": "echo", "start_timeout": 30.0}, environ={})
    yield values
    with contextlib.suppress(Exception):
        info = read_server_file(values)
        if info is not None and info.pid != os.getpid():
            os.kill(info.pid, signal.SIGKILL)


@pytest.fixture
def make_worker() -> Iterator[Callable[..., Worker]]:
    """Build workers over engines by name, or over a loader; the first name is the default."""
    workers: list[Worker] = []

    def make(engines: Mapping[str, EchoEngine], load: EngineLoader | None = None, keep_alive: float = -1) -> Worker:
        cards = [ModelCard(name) for name in engines]

        def find(name: str) -> ModelCard:
            for card in cards:
                if name in ("", card.name):
                    return card
            raise UnknownModel(f"There is no model {name!r} here.")

        def take(name: str, progress: Callable[[Progress], None]) -> EchoEngine:
            return engines[name]

        workers.append(Worker(load or take, lambda: cards, find, keep_alive))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@dataclass
class Served:
    """A server in a thread of this process."""

    info: ServerInfo
    http: httpx.Client
    thread: threading.Thread


@pytest.fixture
def serving(settings: Settings, wait_until: Callable[[Callable[[], object]], None]) -> Iterator[Callable[..., Served]]:
    """Serve a worker on a free port until the test ends; ``http`` sends the token."""
    running: list[Served] = []

    def start(worker: Worker, version: str = "1.2.3") -> Served:
        thread = threading.Thread(target=serve, args=(worker, settings, version))
        thread.start()
        wait_until(lambda: running_server(settings))
        info = read_server_file(settings)
        assert info is not None
        http = httpx.Client(
            base_url=info.url, headers={"Authorization": f"Bearer {info.token}"}, trust_env=False, timeout=20
        )
        running.append(Served(info, http, thread))
        return running[-1]

    yield start
    for served in running:
        served.http.close()
        headers = {"Authorization": f"Bearer {served.info.token}"}
        with contextlib.suppress(httpx.ConnectError):
            httpx.post(f"{served.info.url}/gemma/stop", headers=headers, trust_env=False)
        served.thread.join(20)
        assert not served.thread.is_alive()
