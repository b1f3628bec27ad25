"""Run a notebook through a real Jupyter kernel and print every cell and what it showed.

python examples/run.py [NOTEBOOK]     default: quickstart.ipynb beside this file

Exits with 1 when a cell fails. The model server that the notebook starts goes on running.
"""

# ruff: noqa: T201 (printing is what it is for)
from __future__ import annotations

import argparse
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from jupyter_gemma.client import Client
from jupyter_gemma.settings import load_settings

CELL_SECONDS = 600


def main() -> int:
    """Read the command line, run the notebook; the exit status."""
    parser = argparse.ArgumentParser(description="Run a notebook and print what its cells show.")
    parser.add_argument("notebook", nargs="?", type=Path, default=Path(__file__).with_name("quickstart.ipynb"))
    path = parser.parse_args().notebook.resolve()
    before = server_state()
    print(f"{path.name}: {'a model server runs already' if before else 'no model server runs yet'}\n", flush=True)
    started = time.perf_counter()
    failed = not run(path)
    after = server_state()
    print(f"Ran in {time.perf_counter() - started:.0f} s. The model server {what_happened(before, after)}.")
    return int(failed)


def server_state() -> str:
    """The address of the running model server, "" if none runs."""
    return str(Client(load_settings()).status().get("url", ""))


def what_happened(before: str, after: str) -> str:
    """Whether the server at ``after`` is the one that was there ``before``."""
    if not after:
        return "does not run"
    return f"was reused: {after}" if before == after else f"was started and goes on running: {after}"


def run(path: Path) -> bool:
    """Run all cells, printing each when it is done; whether none failed."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(path.parent)}})
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                print(first_line(cell.source), end="\n\n", flush=True)
                continue
            print(textwrap.indent(cell.source, ">>> "), flush=True)
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                print(
                    indented("\n".join([*map(shown, cell.outputs), f"This cell failed. {error.ename}: {error.evalue}"]))
                )
                return False
            print(indented("\n".join(map(shown, cell.outputs))), flush=True)
    return True


def first_line(markdown: str) -> str:
    """The heading of a text cell, or the beginning of its text."""
    return markdown.strip().split("\n", 1)[0]


def shown(output: Any) -> str:
    """One output as text."""
    if output.output_type == "stream":
        return str(output.text).rstrip()
    if output.output_type == "error":
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
    return str(output.data.get("text/plain", f"({', '.join(output.data)})"))


def indented(text: str) -> str:
    """``text`` set off from the code, with an empty line after it."""
    return f"{textwrap.indent(text, '    ')}\n" if text.strip() else ""


if __name__ == "__main__":
    sys.exit(main())
