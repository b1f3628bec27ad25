"""One real JupyterLab with its own model server, and one Chromium, for all browser tests.

Needs Debian's (or another) Chromium on the path; skipped without it, unless GEMMA_REQUIRE_ALL is set.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Without these Chromium asks the network for its own updates.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@dataclass
class Lab:
    """A running JupyterLab. ``work`` is the folder it shows."""

    url: str
    token: str
    work: Path
    environment: dict[str, str]

    def address(self, notebook: str) -> str:
        """Where a notebook opens in a clean workspace."""
        return f"{self.url}lab/tree/{notebook}?reset&token={self.token}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def private_environment(root: Path) -> dict[str, str]:
    """Every folder that Jupyter, IPython or we write to lies under ``root``."""
    folders = {
        "HOME": "home",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    }
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    for name, folder in folders.items():
        (root / folder).mkdir()
        environment[name] = str(root / folder)
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    write_settings(root, "apputils-extension/notification", quiet)
    # A windowed notebook draws only what is in view, and late: a screenshot needs all of it.
    write_settings(root, "notebook-extension/tracker", {"windowingMode": "none"})
    return environment


def write_settings(root: Path, plugin: str, values: dict[str, object]) -> None:
    file = root / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("lab")
    work = root / "work"
    shutil.copytree(ROOT / "examples", work, ignore=shutil.ignore_patterns("__pycache__"))
    environment = private_environment(root)
    token, port = secrets.token_hex(16), free_port()
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={work}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None"]
    with (root / "lab.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status", token, process, root / "lab.log")
        yield Lab(f"http://127.0.0.1:{port}/", token, work, environment)
    finally:
        process.terminate()
        process.wait(20)
        subprocess.run([sys.executable, "-m", "jupyter_gemma", "stop"], env=environment, check=False)


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"token {token}"})
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(request, timeout=2).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="session")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "needs Chromium on the path (Debian: apt install chromium)"
        pytest.fail(reason) if os.environ.get("GEMMA_REQUIRE_ALL") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, headless=True, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A fresh page in a context of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    yield page
    context.close()
