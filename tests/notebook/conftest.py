"""A shell whose cells raise, and a client that plays chunks and remembers what it was asked."""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from jupyter_gemma.client import Hangup
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.magics import GemmaMagics, load
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, ModelCard, Progress, Request, Segment, Usage

USAGE = Usage(text_tokens=7, image_tokens=48, completion_tokens=4, decode_seconds=0.5)


class FakeClient:
    """Plays ``chunks`` to every question; an exception among them is raised there."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.chunks: list[Chunk | BaseException] = [
            Chunk(text="It "),
            Chunk(text="rises."),
            Chunk(finish="stop", usage=USAGE),
        ]
        self.cards = [
            ModelCard(
                "demo",
                notice="Often wrong.",
                modalities=("text", "image", "audio"),
                turns=False,
                extras=False,
                prompts={"explain": "Explain this plot.", "transcribe": "Transcribe it."},
                table_form="columns",
            ),
            ModelCard("big", modalities=("text", "image", "audio")),
            ModelCard("base", instruct=False),
        ]
        self.requests: list[Request] = []
        self.rendered: list[Request] = []
        self.closed_early = 0

    def models(self) -> list[ModelCard]:
        return self.cards

    def status(self) -> dict[str, Any]:
        return {"state": "ready", "model": "demo"}

    def render(self, request: Request) -> dict[str, Any]:
        self.rendered.append(request)
        return {"prompt": "<turn>user ...", "text_tokens": 5, "image_tokens": 48, "audio_tokens": 0}

    def load(self, name: str = "", on_progress: Any = None) -> dict[str, Any]:
        on_progress(Progress(f"loading {name or 'demo'}", 1, 2))
        return {"state": "ready", "model": name or "demo"}

    def unload(self) -> dict[str, Any]:
        return {"state": "idle", "model": ""}

    def transcribe(self, request: Request, hangup: Hangup | None = None) -> Iterator[Chunk]:
        self.requests.append(request)
        yield Chunk(progress=Progress("transcribing", 1, 2))
        yield Chunk(segment=Segment(0.0, 1.5, "open the file"))
        yield Chunk(segment=Segment(61.25, 3662.5, "close it"))
        yield Chunk(finish="stop", usage=USAGE)

    def stream(self, request: Request, hangup: Hangup | None = None) -> Iterator[Chunk]:
        self.requests.append(request)
        finished = False
        try:
            for chunk in list(self.chunks):
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
            finished = True
        finally:
            self.closed_early += not finished


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> None:
    """Kept answers, server files and settings of this test only."""
    for name in ("RUNTIME", "DATA", "CONFIG"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))


@pytest.fixture(scope="session")
def demo_folders(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Folders of one real server with the demo model, which ends with the session."""
    root = tmp_path_factory.mktemp("demo")
    names = [f"JUPYTER_{name}_DIR" for name in ("RUNTIME", "DATA", "CONFIG")]
    folders = {name: str(root / name.lower()) for name in (*names, "IPYTHONDIR")}
    yield folders
    command = [sys.executable, "-m", "jupyter_gemma", "stop"]
    subprocess.run(command, env={**os.environ, **folders}, check=True, capture_output=True)


@pytest.fixture
def demo_server(folders, demo_folders, monkeypatch) -> None:
    """This test asks the real demo model."""
    for name, value in demo_folders.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_GEMMA_MODEL", "demo")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def shell(tmp_path, monkeypatch) -> Iterator[InteractiveShell]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    made.history_manager.enabled = False
    yield made
    made.history_manager.end_session()
    # At exit each shell would collect all garbage; several hundred of them would take minutes.
    atexit.unregister(made.atexit_operations)
    InteractiveShell.clear_instance()


@pytest.fixture
def magics(shell, client) -> GemmaMagics:
    return load(shell, Gemma(client))


@pytest.fixture
def run(shell, magics):
    """Run a cell; the value of its last line comes back, its exception is raised."""

    def run_cell(source: str) -> Any:
        result = shell.run_cell(source, store_history=True)
        result.raise_error()
        return result.result

    return run_cell
