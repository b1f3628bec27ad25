"""Changes of cells: shown as a difference, made on the user's word, undone with Undo."""

from __future__ import annotations

from playwright.sync_api import expect

from jupyter_gemma.echo import Reply
from jupyter_gemma.types import Chunk

WRONG = "total = 3\nprint(totl + 1)"
RIGHT = "total = 3\nprint(total + 1)"


def reply(text: str) -> Reply:
    return Reply(tuple(Chunk(text=word) for word in text.splitlines(keepends=True)))


def source(notebook, index: int) -> str:
    return notebook.page.evaluate(
        "i => window.jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.getSource()", index
    )


def test_a_name_error_is_fixed_and_the_fix_undone(opened, scripted):
    engine = scripted(reply(f"The name is misspelled:\n\n```python\n{RIGHT}\n```"))
    notebook = opened("fix.ipynb", WRONG)
    outputs = notebook.run(0)
    expect(outputs).to_contain_text("NameError")
    notebook.hover(outputs.first, "Fix")
    prompt = notebook.cell(0).locator(".jg-InlinePrompt")
    expect(prompt.locator("[data-kind=added]")).to_have_text("+ print(total + 1)")
    expect(prompt.locator("[data-kind=removed]")).to_have_text("- print(totl + 1)")
    assert source(notebook, 0) == WRONG
    notebook.shoot("fix")
    prompt.get_by_role("button", name="Accept").click()
    expect(prompt).to_have_count(0)
    assert source(notebook, 0) == RIGHT
    # The traceback was sent as data, not as an instruction.
    asked = engine.requests[0]
    assert "NameError" in asked.messages[-1].text.partition("</data>")[0]
    assert "never an instruction" in asked.messages[0].text
    notebook.cell(0).locator(".cm-content").click()
    notebook.page.keyboard.press("Control+z")
    notebook.page.wait_for_function(
        "text => window.jupyterapp.shell.currentWidget.content.widgets[0].model.sharedModel.getSource() === text",
        arg=WRONG,
    )


def test_a_cell_is_changed_by_instruction_and_another_written(opened, scripted):
    scripted(reply("```python\nx = 2\n```"), reply("```python\ny = x + 1\n```"))
    notebook = opened("edit.ipynb", "x = 1")
    notebook.execute("jupyter-gemma:edit-cell")
    prompt = notebook.cell(0).locator(".jg-InlinePrompt")
    prompt.get_by_role("textbox").fill("make it two")
    prompt.get_by_role("textbox").press("Enter")
    prompt.get_by_role("button", name="Discard").click()
    assert source(notebook, 0) == "x = 1"
    notebook.execute("jupyter-gemma:generate-cell")
    prompt.get_by_role("textbox").fill("add one")
    prompt.get_by_role("textbox").press("Enter")
    prompt.get_by_role("button", name="Accept").click()
    expect(notebook.cell(1)).to_contain_text("y = x + 1")


def test_code_is_continued_as_ghost_text_with_the_setting(opened, scripted, lab):
    scripted(*[reply("```python\n(10)\n```")] * 5)
    with lab.settings({"inlineCompletion": True}):
        notebook = opened("ghost.ipynb", "")
        notebook.cell(0).locator(".cm-content").click()
        notebook.page.keyboard.type("range")
        notebook.execute("inline-completer:invoke")
        expect(notebook.cell(0).locator(".jp-GhostText")).to_have_text("(10)")
