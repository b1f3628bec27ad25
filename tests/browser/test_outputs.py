"""Answers that stand under the output they speak of."""

from __future__ import annotations

import io
import json
import re

from PIL import Image
from playwright.sync_api import expect

from jupyter_gemma.echo import Reply
from jupyter_gemma.types import Chunk

PLOT = """import matplotlib.pyplot as plt
import numpy as np

days = np.linspace(0, 10, 200)
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


def test_an_answer_loads_nothing_where_it_goes(opened, scripted, lab):
    address = f"{lab.url}leaked.png"
    scripted(Reply((Chunk(text=f"**Up** ![x]({address}) <img src='{address}'>"), Chunk(finish="stop"))))
    notebook = opened("leak.ipynb", PLOT)
    asked: list[str] = []
    notebook.page.on("request", lambda request: asked.append(request.url))
    notebook.hover(notebook.run(0).nth(0), "Explain")
    expect(notebook.cell(0).locator(".jg-OutputAnswer")).to_contain_text("Up")
    notebook.cell(0).get_by_role("button", name="Move to a Markdown cell").click()
    expect(notebook.cell(1).locator(".jp-MarkdownOutput strong")).to_have_text("Up")
    assert any("gemma" in url for url in asked)
    assert address not in asked


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


DRAWN = """from IPython.display import HTML, SVG, display

display(SVG('<svg xmlns="http://www.w3.org/2000/svg" width="120" height="80"><rect width="60" height="80"/></svg>'))
display(HTML('<canvas id="drawn" width="200" height="100"></canvas><script>'
             'document.getElementById("drawn").getContext("2d").fillRect(0, 0, 100, 100)</script>'))"""


def test_drawings_become_pictures_of_their_pixels(opened, scripted):
    engine = scripted()
    notebook = opened("drawn.ipynb", DRAWN)
    outputs = notebook.run(0)
    expect(outputs).to_have_count(2)
    notebook.hover(outputs.nth(0), "Ask…")
    notebook.hover(outputs.nth(1), "Ask…")
    expect(notebook.panel.locator(".jg-Composer .jg-Chip img")).to_have_count(2)
    expect(notebook.ask("What are these?")).to_contain_text("What are these?")
    sizes = []
    for part in engine.requests[0].messages[-1].parts[:2]:
        picture = Image.open(io.BytesIO(part.data)).convert("L")
        sizes.append(picture.size)
        width, height = picture.size
        # Drawn black on the left, white paper on the right.
        assert picture.getpixel((width // 4, height // 2)) == 0
        assert picture.getpixel((3 * width // 4, height // 2)) == 255
    assert sizes == [(120, 80), (200, 100)]


PLOTLY = """import plotly.graph_objects as go

go.Figure(go.Scatter(x=[1, 2, 3], y=[2, 5, 3]), layout={"width": 420, "height": 300})"""
# As Altair gives it with renderers.enable("mimetype"); its own page loads Vega from the network.
VEGA = """from IPython.display import display

axes = {"x": {"field": "city", "type": "nominal"}, "y": {"field": "rain", "type": "quantitative"}}
values = [{"city": "Rome", "rain": 60}, {"city": "Oslo", "rain": 90}]
spec = {"data": {"values": values}, "mark": "bar", "encoding": axes, "width": 200, "height": 150}
display({"application/vnd.vegalite.v5+json": spec}, raw=True)"""


def test_what_the_browser_draws_is_explained_by_its_pixels(opened, scripted):
    engine = scripted()
    notebook = opened("charts.ipynb", PLOTLY, VEGA)
    for index, drawn in enumerate((".js-plotly-plot .main-svg", ".vega-embed canvas, .vega-embed svg")):
        output = notebook.run(index).first
        expect(output.locator(drawn).first).to_be_visible()
        notebook.hover(output, "Explain")
        expect(notebook.cell(index).locator(".jg-OutputAnswer")).to_contain_text("Explain this plot")
        picture = Image.open(io.BytesIO(engine.requests[index].messages[-1].parts[0].data)).convert("RGB")
        assert len(picture.getcolors(1 << 20)) > 20  # lines and letters, not a blank sheet
        assert picture.width > 200
    notebook.shoot("charts")


def test_with_the_setting_every_plot_is_explained(opened, scripted, lab):
    scripted()
    with lab.settings({"autoExplain": True}):
        notebook = opened("auto.ipynb", PLOT)
        notebook.run(0)
        expect(notebook.cell(0).locator(".jg-OutputAnswer")).to_contain_text("Explain this plot")
