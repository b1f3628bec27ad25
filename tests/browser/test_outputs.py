"""Answers that stand under the output they speak of."""

from __future__ import annotations

import json
import re

from playwright.sync_api import expect

PLOT = """import matplotlib.pyplot as plt
import numpy as np

days = np.linspace(0, 10, 200)
plt.figure(figsize=(6, 3.2))
plt.plot(days, 15 + 5 * np.sin(2 * days))
plt.title("Temperature over time")
plt.xlabel("day")
plt.ylabel("degrees")
plt.show()
print("after the plot")"""
SOUND = 'from IPython.display import Audio\n\nAudio("data/command.wav")'


def test_a_plot_is_explained_under_it_and_stays(opened, lab):
    notebook = opened("explain.ipynb", PLOT)
    outputs = notebook.run(0)
    expect(outputs).to_have_count(2)
    notebook.hover(outputs.nth(0), "Explain")
    answer = notebook.cell(0).locator(".jg-OutputAnswer")
    expect(answer).to_contain_text("This is a line chart")
    expect(answer).to_contain_text(re.compile(r"\d+ image tokens"))
    expect(answer).to_contain_text("counts and ranks are often wrong")
    # Under the plot, above what was printed after it.
    expect(outputs).to_have_count(3)
    expect(outputs.nth(1).locator(".jg-OutputAnswer")).to_have_count(1)
    expect(outputs.nth(2)).to_contain_text("after the plot")
    notebook.shoot("explain")
    notebook.save()
    # Programs that do not know us read Markdown.
    saved = json.loads((lab.work / "explain.ipynb").read_text())["cells"][0]["outputs"][1]
    assert "".join(saved["data"]["text/markdown"]).startswith("This is a line chart")
    again = opened("explain.ipynb")
    expect(again.cell(0).locator(".jg-OutputAnswer")).to_contain_text("This is a line chart")
    expect(again.cell(0).locator(".jp-OutputArea-child")).to_have_count(3)
    # It can be moved to a cell of its own.
    again.cell(0).get_by_role("button", name="Move to a Markdown cell").click()
    expect(again.cell(1)).to_contain_text("This is a line chart")
    expect(again.cell(0).locator(".jp-OutputArea-child")).to_have_count(2)


def test_a_sound_is_transcribed_and_the_answer_removed(opened):
    notebook = opened("transcribe.ipynb", SOUND)
    outputs = notebook.run(0)
    expect(outputs.locator("audio")).to_have_count(1)
    notebook.hover(outputs.first, "Transcribe")
    answer = notebook.cell(0).locator(".jg-OutputAnswer")
    expect(answer).to_contain_text("make a scatter chart of column four")
    notebook.shoot("transcribe")
    answer.get_by_role("button", name="Remove this answer").click()
    expect(answer).to_have_count(0)
    expect(outputs).to_have_count(1)


def test_the_context_menu_offers_what_fits(opened):
    notebook = opened("menu.ipynb", PLOT, SOUND)
    notebook.run(0).nth(0).locator("img").click(button="right")
    explain = notebook.page.get_by_role("menuitem", name="Explain with Gemma")
    transcribe = notebook.page.get_by_role("menuitem", name="Transcribe with Gemma")
    expect(explain).to_be_visible()
    expect(transcribe).to_have_count(0)
    notebook.page.keyboard.press("Escape")
    notebook.run(1).locator(".jp-OutputArea-output").click(button="right", position={"x": 450, "y": 8})
    expect(transcribe).to_be_visible()
    expect(explain).to_have_count(0)
