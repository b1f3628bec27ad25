"""The kernel "Python 3 (Gemma)": its spec and pictures, and a real one that answers with a warm server."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import start_new_kernel

from jupyter_gemma.client import Client
from jupyter_gemma.settings import load_settings

SPEC = Path(__file__).parents[2] / "kernels" / "kernelspec"


def test_the_spec_is_one_that_jupyter_takes():
    spec = KernelSpecManager(kernel_dirs=[str(SPEC.parent)]).get_kernel_spec("kernelspec")
    assert spec.display_name == "Python 3 (Gemma)"
    assert spec.argv == ["python", "-m", "jupyter_gemma.notebook.kernel", "-f", "{connection_file}"]
    assert json.loads((SPEC / "kernel.json").read_text())["language"] == "python"


@pytest.mark.parametrize("side", [32, 64])
def test_the_logos_have_their_sizes(side):
    data = (SPEC / f"logo-{side}x{side}.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (side, side)


def test_the_drawing_loads_nothing():
    svg = (SPEC / "logo-svg.svg").read_text()
    assert re.findall(r"https?://[^\"]+", svg) == ["http://www.w3.org/2000/svg"]


@pytest.fixture
def environment(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_GEMMA_ENGINE", "echo")
    yield dict(os.environ)
    subprocess.run([sys.executable, "-m", "jupyter_gemma", "stop"], check=True, capture_output=True)


@pytest.fixture
def kernel(environment, monkeypatch):
    monkeypatch.setattr(KernelSpecManager, "kernel_dirs", [str(SPEC.parent)])
    manager, client = start_new_kernel(kernel_name="kernelspec", startup_timeout=60)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.context.destroy(linger=0)


def outputs(kernel, source: str) -> list[dict]:
    found: list[dict] = []
    reply = kernel.execute_interactive(source, output_hook=found.append, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    return [message["content"] for message in found if message["msg_type"] != "status"]


def test_gemma_is_there_without_a_word_and_the_server_warms_up(kernel):
    shown = outputs(kernel, "answer = %gemma -m echo hello there")
    assert "hello there" in shown[-1]["data"]["text/markdown"]
    assert shown[-1]["metadata"]["jupyter_gemma"]["model"] == "echo"
    assert Client(load_settings()).status()["state"] == "ready"
    assert outputs(kernel, "import sys; print('torch' in sys.modules)")[-1]["text"] == "False\n"


def test_completion_in_a_real_kernel(kernel):
    outputs(kernel, "speeds = [1, 2]")
    for source, expected in (
        ("%gemma --im", "--image-tokens"),
        ("%gemma /expl", "/explain"),
        ("%gemma {spe", "speeds"),
    ):
        reply = kernel.complete(source, reply=True, timeout=60)["content"]
        assert reply["matches"][:1] == [expected]
        assert source[: reply["cursor_start"]] + expected == source[: -len(source.split()[-1].lstrip("{"))] + expected
