"""The magics in Notebook 7: an example as a whole, an answer that streams, and the row of buttons."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

LOAD = "%load_ext jupyter_gemma"
SLOW = f"%gemma -m echo-slow --no-cache **Slowly** {' '.join(f'word{number}' for number in range(80))}"


@pytest.fixture
def echo(lab):
    """The echo models answer while the test runs."""
    process = lab.serve_echo()
    yield
    lab.stop_model_server()
    process.wait(20)


def test_an_example_runs_as_a_whole(page, notebook7):
    notebook = notebook7("conversation.ipynb")
    notebook.execute("notebook:run-all-cells")
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    expect(cells.last.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]:"))
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    answers = page.locator(".jp-RenderedMarkdown:has(sub)")
    expect(answers.first.locator("sub").first).to_contain_text("tokens")


@pytest.mark.usefixtures("echo")
def test_an_answer_streams_into_one_output_as_markdown(page, lab, notebook7):
    notebook = notebook7(lab.write("streams.ipynb", [LOAD, SLOW]))
    notebook.run(0)
    output = notebook.run(1)
    expect(output).to_contain_text("word3")
    assert "word79" not in output.inner_text()
    expect(output).to_contain_text("word79")
    expect(output.locator("strong")).to_have_text("Slowly")
    assert output.count() == 1


@pytest.mark.usefixtures("echo")
def test_the_buttons_stop_an_answer_and_ask_again(page, lab, notebook7):
    notebook = notebook7(lab.write("buttons.ipynb", [f"{LOAD}\n%config GemmaMagics.widgets = True", SLOW]))
    notebook.run(0)
    output = notebook.run(1)
    expect(output.first).to_contain_text("word3")
    cell = notebook.cell(1)
    cell.get_by_role("button", name="Stop").click()
    expect(output.first).to_contain_text("stopped")
    assert "word79" not in output.first.inner_text()
    expect(cell.get_by_role("button", name="Stop")).to_be_disabled()
    cell.get_by_role("button", name="Regenerate").click()
    expect(cell.locator(".widget-output").first).to_contain_text("word79")
    assert "stopped" in output.first.inner_text()
