"""The examples through a real kernel, server and demo model; also in nbconvert and papermill.

``quickstart.ipynb`` runs in ``tests/browser/``.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path for path in EXAMPLES.glob("*.ipynb") if path.stem != "quickstart")
KINDS = {"dataframes", "plots", "audio", "structured-output", "map", "conversation", "fixing-errors", "finetuning"}

pytestmark = pytest.mark.usefixtures("demo_server")


@pytest.fixture
def work(tmp_path) -> Path:
    """A copy of the examples to run in."""
    return Path(shutil.copytree(EXAMPLES, tmp_path / "work", ignore=shutil.ignore_patterns("__pycache__")))


def test_there_is_one_for_each_thing():
    assert {path.stem for path in NOTEBOOKS} == KINDS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, work):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(work)}}).execute()
    nbformat.validate(notebook)
    records = [
        output.metadata["jupyter_gemma"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "jupyter_gemma" in output.get("metadata", {})
    ]
    assert all(record["model"] == "demo" and len(record["key"]) == 64 for record in records)
    assert records or path.stem == "map"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, env=dict(os.environ)
    )


def test_nbconvert_runs_it_and_shows_the_answers(work):
    done = command("nbconvert", "--execute", "--to", "html", str(work / "conversation.ipynb"))
    assert done.returncode == 0, done.stderr[-2000:]
    page = (work / "conversation.html").read_text()
    assert "<sub>sent df (table 3 × 2, figures of 2 columns)" in page
    assert "The answer is the same." in page


def test_papermill_runs_it_with_parameters(work):
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [
        nbformat.v4.new_code_cell("rows = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import pandas\n%load_ext jupyter_gemma\ndf = pandas.DataFrame({'n': range(rows)})"),
        nbformat.v4.new_code_cell("%gemma -o answer -w df How many rows are there?"),
        nbformat.v4.new_code_cell("assert answer.text == '31', answer.text"),
    ]
    nbformat.write(notebook, work / "in.ipynb")
    done = command("papermill", str(work / "in.ipynb"), str(work / "out.ipynb"), "-p", "rows", "31", "--cwd", str(work))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "31" in json.dumps(nbformat.read(work / "out.ipynb", as_version=4))


@pytest.mark.parametrize(
    ("program", "cell", "words"),
    [
        ("nbconvert", "%gemma -m nope why?", "no model 'nope'"),
        ("papermill", "%gemma --sed 1 why?", "Did you mean --seed?"),
    ],
)
def test_a_failure_of_the_magic_fails_the_run(work, program, cell, words):
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    notebook.cells = [nbformat.v4.new_code_cell("%load_ext jupyter_gemma"), nbformat.v4.new_code_cell(cell)]
    nbformat.write(notebook, work / "in.ipynb")
    arguments = {
        "nbconvert": ["nbconvert", "--execute", "--to", "notebook", "--stdout", str(work / "in.ipynb")],
        "papermill": ["papermill", str(work / "in.ipynb"), str(work / "out.ipynb")],
    }
    done = command(*arguments[program])
    assert done.returncode != 0
    told = done.stderr + ((work / "out.ipynb").read_text() if program == "papermill" else "")
    assert words in told
