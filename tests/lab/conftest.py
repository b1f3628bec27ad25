"""A Jupyter Server with our extension, all of its state in temporary folders, and a model server in a thread."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jupyter_gemma import __version__
from jupyter_gemma.discovery import running_server
from jupyter_gemma.echo import ECHO_MODELS, EchoEngine, Reply, find_echo
from jupyter_gemma.server.app import serve
from jupyter_gemma.server.worker import Worker
from jupyter_gemma.settings import load_settings


@pytest.fixture
def jp_server_config():
    return {"ServerApp": {"jpserver_extensions": {"jupyter_gemma": True}}}


@pytest.fixture(autouse=True)
def _own_runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model server of the user is found, touched or started."""
    monkeypatch.setenv("JUPYTER_GEMMA_RUNTIME_DIR", str(tmp_path / "gemma-runtime"))
    monkeypatch.setenv("JUPYTER_GEMMA_START_SERVER", "false")


@pytest.fixture
def model_server(wait_until) -> Iterator[Callable[[Sequence[Reply]], EchoEngine]]:
    """``model_server(script)``: serve an echo engine with that script where the extension finds it."""
    with contextlib.ExitStack() as stack:

        def start(script: Sequence[Reply] = ()) -> EchoEngine:
            engine, settings = EchoEngine(script=script), load_settings()
            worker = Worker(lambda name, progress: engine, lambda: ECHO_MODELS[:1], find_echo)
            thread = threading.Thread(target=serve, args=(worker, settings, __version__), daemon=True)
            thread.start()
            stack.callback(thread.join, 10)
            stack.callback(_stop, settings)
            wait_until(lambda: running_server(settings))
            return engine

        yield start


def _stop(settings) -> None:
    from jupyter_gemma.client import Client

    Client(settings).stop_server()


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for a state of another thread that has no event to wait for."""

    def wait(condition: Callable[[], object]) -> None:
        for _ in range(2000):
            if condition():
                return
            threading.Event().wait(0.01)
        pytest.fail("this did not come true within 20 seconds")

    return wait
