"""Loading the package is instant: nothing heavy is imported, and it costs less than 150 ms of computing time.

Each measurement is a new interpreter that has done the bare part already. Processor time is counted, not time on the
clock, and the median is taken, so that other work on the machine does not decide.
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
RUNS = 3

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
CODE = """
{bare}
import json, sys, time
start = time.process_time()
{ours}
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""


@pytest.fixture
def measure(tmp_path: Path):
    """``measure(side)``: the processor seconds that ours adds to bare, and the modules then loaded."""
    folders = ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**kept, **{name: str(tmp_path / name.lower()) for name in folders}}

    def measure(side: str) -> tuple[float, list[str]]:
        bare, ours = SIDES[side]
        command = [sys.executable, "-c", CODE.format(bare=bare, ours=ours)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seconds, modules = json.loads(done.stdout.splitlines()[-1])
        return seconds, modules

    return measure


@pytest.mark.parametrize("side", SIDES)
def test_loading_is_light(side: str, measure) -> None:
    _, modules = measure(side)  # the first run writes the bytecode, so its time is not counted
    assert "jupyter_gemma" in modules
    assert not [name for name in HEAVY if name in modules]
    cost = statistics.median(measure(side)[0] for _ in range(RUNS))
    print(f"{side}: {1000 * cost:.0f} ms")
    assert cost < LIMIT
