"""Loading the package is instant: nothing heavy is imported, and it costs less than 150 ms of computing time.

Each measurement is a new interpreter. Processor time is counted, not time on the clock, and both sides alternate, so
that other work on the machine does not decide.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["torch", "transformers", "numba", "librosa", "accelerate"]
LIMIT = 0.150
RUNS = 5

BARE_SHELL = "import IPython; from IPython.core.interactiveshell import InteractiveShell as S; shell = S.instance()"
BARE_SERVER = "import jupyter_server.serverapp, jupyter_server.extension.application, jupyter_server.base.handlers"
SIDES = {
    "import": (BARE_SHELL, "import jupyter_gemma"),
    "load_ext": (
        BARE_SHELL,
        "shell.run_line_magic('load_ext', 'jupyter_gemma'); shell.find_line_magic('gemma').__call__",
    ),
    "server extension": (BARE_SERVER, "import jupyter_gemma; jupyter_gemma._jupyter_server_extension_points()"),
}
REPORT = "import sys, json, time; print(json.dumps([time.process_time(), sorted(sys.modules)]))"


@pytest.fixture
def run(tmp_path: Path):
    """``run(code, ...)``: processor seconds and loaded modules of a new interpreter that has run the code."""
    folders = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, **{name: str(tmp_path / name.lower()) for name in folders}}

    def run(*code: str) -> tuple[float, list[str]]:
        command = [sys.executable, "-c", "\n".join([*code, REPORT])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds, modules = json.loads(done.stdout.splitlines()[-1])
        return seconds, modules

    return run


@pytest.mark.parametrize("side", SIDES)
def test_loading_imports_nothing_heavy(side: str, run) -> None:
    _, modules = run(*SIDES[side])
    assert "jupyter_gemma" in modules
    assert not [name for name in HEAVY if name in modules]


@pytest.mark.parametrize("side", SIDES)
def test_loading_costs_less_than_the_limit(side: str, run) -> None:
    bare, ours = SIDES[side]
    run(bare, ours)  # writes the bytecode
    pairs = [(run(bare)[0], run(bare, ours)[0]) for _ in range(RUNS)]
    without, with_ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"{side}: {1000 * (with_ours - without):.0f} ms over {1000 * without:.0f} ms")
    assert with_ours - without < LIMIT
