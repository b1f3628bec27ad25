"""One real JupyterLab with its own model server, and one Chromium, for all browser tests."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest

from jupyter_gemma import __version__
from jupyter_gemma.client import Client
from jupyter_gemma.discovery import ServerInfo, running_server
from jupyter_gemma.echo import ECHO_MODELS, EchoEngine, Reply, find_echo
from jupyter_gemma.server.app import serve
from jupyter_gemma.server.worker import Worker
from jupyter_gemma.settings import Settings, load_settings

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

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
    # The microphone is this clip, once; nobody is asked whether it may be used.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    f"--use-file-for-fake-audio-capture={ROOT / 'examples' / 'data' / 'command.wav'}%noloop",
]
IMAGES = ROOT / "docs" / "images"
# The execution indicator says idle before the kernel is connected, and a cell run then is dropped without a
# word: wait for the application's own promises.
READY = """async path => {
  const until = async look => {
    let found;
    while (!(found = look())) {
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    return found;
  };
  const app = await until(() => window.jupyterapp);
  await app.restored;
  const panel = await until(() => {
    const widget = app.shell.currentWidget;
    return widget?.sessionContext && widget.context.path === path && widget;
  });
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
  app.shell.collapseLeft?.();  // the list of files would show what other tests left
}"""

OPEN_ON_SAME_KERNEL = """async path => {
  const { commands, shell } = window.jupyterapp;
  const { id } = shell.currentWidget.sessionContext.session.kernel;
  await commands.execute('docmanager:open', { path, kernel: { id } });
}"""


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

    def write(self, name: str, sources: Sequence[str]) -> str:
        """Make a notebook of code cells; its name."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(source) for source in sources],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        )
        nbformat.write(notebook, self.work / name)
        return name

    @contextmanager
    def settings(self, values: dict[str, object]) -> Iterator[None]:
        """Our settings in JupyterLab, for pages that are opened meanwhile."""
        file = Path(self.environment["JUPYTERLAB_SETTINGS_DIR"]) / "jupyter-gemma" / "plugin.jupyterlab-settings"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(values))
        yield
        file.unlink()

    def serve_echo(self) -> subprocess.Popen[bytes]:
        """Start a model server of its own process that answers with the echo models."""
        self.stop_model_server()
        command = [sys.executable, "-m", "jupyter_gemma", "serve", "--engine", "echo"]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.model_server() is None:
            time.sleep(0.05)
        return process

    def stop_model_server(self) -> None:
        """End the model server, if one runs."""
        Client(self.client_settings).stop_server()
        while self.model_server():
            time.sleep(0.02)

    @property
    def client_settings(self) -> Settings:
        """For a client in this process."""
        return load_settings({"runtime_dir": self.environment["JUPYTER_RUNTIME_DIR"]}, environ={})

    def model_server(self) -> ServerInfo | None:
        """The model server that runs."""
        return running_server(self.client_settings)


class Notebook:
    """A page with one open notebook and our panel."""

    def __init__(self, page: Page, name: str) -> None:
        self.page = page
        self.name = name
        self.panel = page.locator("#jupyter-gemma-panel")
        self.composer = self.panel.get_by_role("textbox", name="Message")

    def cell(self, index: int) -> Locator:
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell").nth(index)

    def run(self, index: int) -> Locator:
        """Run a cell; its outputs."""
        self.cell(index).locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        return self.cell(index).locator(".jp-OutputArea-child")

    def execute(self, command: str, **arguments: object) -> None:
        """Run a command of JupyterLab."""
        self.page.evaluate("([id, args]) => window.jupyterapp.commands.execute(id, args)", [command, arguments])

    def open_panel(self) -> Locator:
        self.page.evaluate("window.jupyterapp.commands.execute('jupyter-gemma:open')")
        self.composer.wait_for()
        return self.panel

    def hover(self, output: Locator, button: str) -> None:
        """Press one of the buttons that appear over an output."""
        output.hover()
        output.get_by_role("toolbar").get_by_role("button", name=button).click()

    def ask(self, words: str) -> Locator:
        """Send a question; its answer."""
        before = self.panel.locator(".jg-Exchange").count()
        self.composer.fill(words)
        self.composer.press("Enter")
        return self.panel.locator(".jg-Exchange").nth(before).locator(".jg-Answer")

    def wait(self) -> None:
        """Until JupyterLab, the notebook and its kernel are ready."""
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")
        self.page.evaluate(READY, self.name)

    def other_tab(self, name: str, workspace: str) -> Notebook:
        """The same notebook in another tab of the same browser."""
        page = self.page.context.new_page()
        page.goto(self.page.url.split("/lab/")[0] + f"/lab/workspaces/{workspace}/tree/{name}?reset")
        other = Notebook(page, name)
        other.wait()
        return other

    def on_same_kernel(self, name: str) -> Notebook:
        """Another notebook in the same page."""
        self.page.evaluate(OPEN_ON_SAME_KERNEL, name)
        other = Notebook(self.page, name)
        other.wait()
        return other

    def save(self) -> None:
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        self.page.wait_for_function("!window.jupyterapp.shell.currentWidget.context.model.dirty")

    def shoot(self, name: str) -> None:
        """Keep a picture of the page for the documents."""
        IMAGES.mkdir(parents=True, exist_ok=True)
        self.page.mouse.move(5, 5)
        self.page.screenshot(path=str(IMAGES / f"{name}.png"))


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
    command += ["--JupyterNotebookApp.expose_app_in_browser=True"]
    with (root / "lab.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=work, stdout=log, stderr=subprocess.STDOUT)
    running = Lab(f"http://127.0.0.1:{port}/", token, work, environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/api/status", token, process, root / "lab.log")
        yield running
    finally:
        end(process)
        running.stop_model_server()


@pytest.fixture
def scripted(lab: Lab) -> Iterator[Callable[..., EchoEngine]]:
    """``scripted(reply, …)``: a real model server with a scripted engine answers while the test runs."""
    threads: list[threading.Thread] = []

    def start(*script: Reply) -> EchoEngine:
        lab.stop_model_server()
        engine = EchoEngine(script=script)
        worker = Worker(lambda name, progress: engine, lambda: ECHO_MODELS[:1], find_echo)
        threads.append(threading.Thread(target=serve, args=(worker, lab.client_settings, __version__), daemon=True))
        threads[-1].start()
        while lab.model_server() is None:
            time.sleep(0.02)
        return engine

    yield start
    lab.stop_model_server()
    for thread in threads:
        thread.join(10)


def end(process: subprocess.Popen[bytes]) -> None:
    """End JupyterLab, which first ends all its kernels."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


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
def browser(chromium):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM_ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def page(browser):
    """A fresh page in a context of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: print(f"page error: {error}"))
    yield page
    context.close()


@pytest.fixture
def opened(page: Page, lab: Lab) -> Callable[..., Notebook]:
    """``opened(name, source, …)``: a new notebook of these cells, open and connected."""

    def open_notebook(name: str, *sources: str) -> Notebook:
        if sources:
            lab.write(name, sources)
        page.goto(lab.address(name))
        notebook = Notebook(page, name)
        notebook.wait()
        return notebook

    return open_notebook


@pytest.fixture
def notebook7(page: Page, lab: Lab) -> Callable[[str], Notebook]:
    """``notebook7(name)``: a notebook that exists, open in Notebook 7."""

    def open_notebook(name: str) -> Notebook:
        page.goto(f"{lab.url}notebooks/{name}?token={lab.token}")
        notebook = Notebook(page, name)
        notebook.wait()
        return notebook

    return open_notebook
