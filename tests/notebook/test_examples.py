"""The example notebook and its runner, without a model: those run in the end-to-end tests."""

import importlib.util
import json
import os
import subprocess
import sys
import wave
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

EXAMPLES = Path(__file__).parents[2] / "examples"
RUNNER = EXAMPLES / "run.py"


@pytest.fixture(params=sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_notebooks_are_valid_and_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_every_code_cell_is_python(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(TransformerManager().transform_cell(cell.source), cell.id, "exec")


def test_clips_are_small_and_16_khz():
    clips = sorted((EXAMPLES / "data").glob("*.wav"))
    assert clips
    for path in clips:
        assert path.stat().st_size < 200_000
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)


def run_notebook(tmp_path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "some.ipynb"
    nbformat.write(notebook, path)
    folders = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("RUNTIME", "DATA", "CONFIG")}
    environment = {**os.environ, **folders, "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, str(RUNNER), str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)


def test_the_runner_prints_cells_and_outputs_and_fails_with_the_cell(tmp_path):
    done = run_notebook(tmp_path, "print('seen')\n40 + 2", "%load_ext jupyter_gemma", "%gemma --sed 1 why?", "'never'")
    assert done.returncode == 1, done.stderr
    for words in (">>> 40 + 2", "    seen", "    42", "Did you mean --seed?", "does not run"):
        assert words in done.stdout
    assert "'never'" not in done.stdout


def test_the_runner_tells_a_started_server_from_a_reused_one():
    spec = importlib.util.spec_from_file_location("run", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "was started" in module.what_happened("", "http://127.0.0.1:1")
    assert "was started" in module.what_happened("http://127.0.0.1:2", "http://127.0.0.1:1")
    assert "was reused" in module.what_happened("http://127.0.0.1:1", "http://127.0.0.1:1")
    assert module.what_happened("", "") == "does not run"


def test_the_quickstart_shows_all_four_things():
    source = json.dumps(nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4))
    for words in ("/explain fig", "/transcribe clip", "-w df", "-m gemma3-270m"):
        assert words in source
