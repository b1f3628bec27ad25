"""The button Insert cell under an answer, in JupyterLab and in Notebook 7."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from jupyter_gemma.echo import Reply
from jupyter_gemma.types import Chunk

LOAD = "%load_ext jupyter_gemma\n%config GemmaMagics.widgets = True"
ASK = "%gemma --no-cache --seed 1 How many?"
CODE, WORDS = "So:\n```python\nprint(6 * 7)\n```", "It is **42**."
CELLS = """() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
  .map(cell => [cell.cell_type, cell.source])"""

CONSOLE = "async () => { await window.jupyterapp.commands.execute('notebook:create-console', {activate: false}) }"
RESTART = "() => window.jupyterapp.shell.currentWidget.sessionContext.restartKernel()"


@pytest.fixture(params=["lab", "notebook7"])
def shown(request, lab, opened, notebook7):
    """``shown(name, source, …)``: a new notebook of these cells, in either front end."""

    def show(name, *sources):
        if request.param == "lab":
            return opened(name, *sources)
        return notebook7(lab.write(name, sources))

    return show


def _answers(*texts):
    return [Reply((Chunk(text=text), Chunk(finish="stop"))) for text in texts]


def _wait_for(page, *cells):
    page.wait_for_function(f"({CELLS})().length === {len(cells)}")
    assert page.evaluate(CELLS) == [list(cell) for cell in cells]


def test_a_click_places_the_newest_answer_below_its_cell(page, shown, scripted):
    scripted(*_answers(CODE, WORDS))
    notebook = shown("insert.ipynb", LOAD, ASK, "last = True")
    notebook.run(0)
    notebook.run(1)
    cell, before, after = notebook.cell(1), [("code", LOAD), ("code", ASK)], ("code", "last = True")
    cell.get_by_role("button", name="Insert cell").click()
    _wait_for(page, *before, ("code", "print(6 * 7)"), after)
    cell.get_by_role("button", name="Regenerate").click()
    expect(cell.locator(".widget-output").first).to_contain_text("It is 42.")
    cell.get_by_role("button", name="Insert cell").click()
    _wait_for(page, *before, ("markdown", WORDS), ("code", "print(6 * 7)"), after)


def test_it_does_so_beside_a_console_after_a_restart_and_a_reload(page, opened, scripted):
    scripted(*_answers(CODE))
    notebook = opened("again.ipynb", LOAD, ASK)
    page.evaluate(CONSOLE)
    page.locator(".jp-CodeConsole").get_by_text("enhanced Interactive Python").wait_for()  # its banner
    page.evaluate(RESTART)
    notebook.run(0)
    notebook.run(1)
    insert = notebook.cell(1).get_by_role("button", name="Insert cell")
    insert.click()
    _wait_for(page, ("code", LOAD), ("code", ASK), ("code", "print(6 * 7)"))
    notebook.save()
    page.reload()
    notebook.wait()
    insert.click()
    _wait_for(page, ("code", LOAD), ("code", ASK), *2 * [("code", "print(6 * 7)")])


def test_of_two_notebooks_on_one_kernel_the_one_that_asked_gets_the_cell(page, lab, opened, scripted):
    scripted(*_answers(CODE))
    first = opened("first.ipynb", LOAD)
    first.run(0)
    second = first.on_same_kernel(lab.write("second.ipynb", [ASK]))
    second.run(0)
    second.cell(0).get_by_role("button", name="Insert cell").click()
    _wait_for(page, ("code", ASK), ("code", "print(6 * 7)"))
    page.evaluate("() => window.jupyterapp.commands.execute('application:activate-previous-tab')")
    first.wait()
    _wait_for(page, ("code", LOAD))
