"""A Jupyter Server with our extension, all of its state in temporary folders."""

from pathlib import Path

import pytest


@pytest.fixture
def jp_server_config():
    return {"ServerApp": {"jpserver_extensions": {"jupyter_gemma": True}}}


@pytest.fixture(autouse=True)
def _own_runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No model server of the user is found or touched."""
    monkeypatch.setenv("JUPYTER_GEMMA_RUNTIME_DIR", str(tmp_path / "gemma-runtime"))
