"""The panel: questions about what the notebook holds, voice, drops, conversations that stay."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import soundfile
from PIL import Image
from playwright.sync_api import expect

from jupyter_gemma.echo import Reply
from jupyter_gemma.types import AudioPart, Chunk, ImagePart

ROOT = Path(__file__).parents[2]
FRAME = """import pandas as pd

df = pd.DataFrame({"city": ["Rome", "Oslo", "Lima"], "rain": [60, 90, 2]})
df"""
CHART = """import matplotlib.pyplot as plt
import numpy as np

days = np.linspace(0, 10, 200)
plt.figure(figsize=(5, 2.6))
plt.plot(days, 15 + 5 * np.sin(2 * days))
plt.title("Temperature over time")
plt.show()"""
PLOT = """import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(4, 2.4))
ax.plot([1, 3, 2, 5]);"""


def test_a_question_about_a_variable(opened):
    notebook = opened("table.ipynb", FRAME, CHART)
    expect(notebook.run(0)).to_contain_text("Oslo")
    plot = notebook.run(1)
    panel = notebook.open_panel()
    notebook.composer.press_sequentially("@d")
    option = panel.get_by_role("option", name=re.compile("^df"))
    expect(option).to_contain_text("DataFrame · 3 × 2")
    notebook.composer.press("Enter")
    expect(notebook.composer).to_have_value("@df ")
    notebook.composer.press_sequentially("Which columns are text?")
    notebook.composer.press("Enter")
    exchange = panel.locator(".jg-Exchange").first
    expect(exchange.locator(".jg-Answer")).to_contain_text("city")
    expect(exchange.locator(".jg-Chip")).to_contain_text("table 3 × 2, figures of 2 columns")
    expect(panel.locator(".jg-Header-title")).to_have_text("@df Which columns are text?")
    notebook.hover(plot, "Explain")
    expect(notebook.cell(1).locator(".jg-OutputAnswer")).to_contain_text("This is a line chart")
    expect(notebook.page.locator(".jg-Status")).to_have_attribute("data-state", "ready")
    notebook.shoot("panel")


def test_variables_are_read_while_the_kernel_is_busy(opened, scripted):
    scripted()
    notebook = opened("busy.ipynb", "value = 41\nimport time; time.sleep(60)")
    notebook.run(0)
    expect(notebook.cell(0).locator(".jp-InputPrompt")).to_have_text("[*]:")
    panel = notebook.open_panel()
    expect(notebook.ask("@value what is it?")).to_contain_text("41")
    expect(panel.locator(".jg-Chip")).to_contain_text("@value")
    notebook.execute("notebook:interrupt-kernel")


def speak(panel):
    """Hold the microphone while the clip is heard."""
    microphone = panel.get_by_role("button", name="Hold to talk")
    microphone.dispatch_event("pointerdown")
    expect(panel.get_by_role("button", name="Recording…")).to_be_visible()
    panel.page.wait_for_timeout(3200)  # the clip, which the browser plays in its own time, has 2.6 s
    panel.get_by_role("button", name="Recording…").dispatch_event("pointerup")


def test_dictation(opened):
    notebook = opened("voice.ipynb", "x = 1")
    speak(notebook.open_panel())
    expect(notebook.composer).to_have_value(re.compile("scatter chart of column four"))
    notebook.shoot("dictation")


def test_what_was_said_is_attached_where_the_user_wants_that(lab, opened, scripted):
    engine = scripted()
    with lab.settings({"microphone": "attach"}):
        notebook = opened("said.ipynb", "x = 1")
    panel = notebook.open_panel()
    speak(panel)
    expect(panel.locator(".jg-Composer .jg-Chip")).to_contain_text("voice.wav")
    expect(notebook.composer).to_have_value("")
    expect(notebook.ask("What was said?")).to_contain_text("What was said?")
    clip = next(part for part in engine.requests[0].messages[-1].parts if isinstance(part, AudioPart))
    samples, rate = soundfile.read(io.BytesIO(clip.data))
    assert rate == 16_000
    assert len(samples) > 2 * rate
    assert abs(samples).max() > 0.05, "not silence"


def test_a_picture_and_a_cell_are_dropped_in(opened, scripted):
    engine = scripted()
    notebook = opened("drop.ipynb", PLOT, "secret = 42")
    picture = notebook.run(0).locator("img")
    expect(picture).to_be_visible()
    panel = notebook.open_panel()
    picture.drag_to(panel.locator(".jg-Composer"))
    chips = panel.locator(".jg-Composer .jg-Chip")
    expect(chips).to_have_count(1)
    expect(chips.locator("img")).to_have_count(1)
    notebook.cell(1).locator(".jp-InputPrompt").drag_to(panel.locator(".jg-Composer"))
    expect(chips).to_have_count(2)
    expect(chips.nth(1)).to_have_attribute("title", re.compile("secret = 42"))
    notebook.shoot("drop")
    expect(notebook.ask("What are these?")).to_contain_text("secret = 42")
    parts = engine.requests[0].messages[-1].parts
    assert isinstance(parts[0], ImagePart)
    assert parts[0].data.startswith(b"\x89PNG")


def test_files_are_dragged_in_from_the_file_browser(lab, opened, scripted):
    engine = scripted()
    (lab.work / "rain.csv").write_text("city,rain\nRome,60\n")
    Image.new("RGB", (60, 40), "red").save(lab.work / "red.png")
    notebook = opened("files.ipynb", "x = 1")
    panel = notebook.open_panel()
    notebook.page.evaluate("() => window.jupyterapp.shell.activateById('filebrowser')")
    chips = panel.locator(".jg-Composer .jg-Chip")
    for number, name in enumerate(["rain.csv", "red.png"], 1):
        listed = notebook.page.locator(".jp-DirListing-item").filter(has_text=name)
        listed.locator(".jp-DirListing-itemIcon").drag_to(panel.locator(".jg-Composer"))
        expect(chips).to_have_count(number)
    expect(chips.nth(0)).to_have_text("rain.csv2 lines")
    expect(chips.nth(1)).to_have_text("red.png60 × 40")
    expect(notebook.ask("What is here?")).to_contain_text("Rome,60")
    assert any(isinstance(part, ImagePart) for part in engine.requests[0].messages[-1].parts)


PASTE = """(area, [name, base64, type]) => {
    const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], name, {type}));
    area.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true}));
}"""


def test_pictures_clips_and_tables_are_pasted_and_taken_out_again(opened, scripted):
    engine = scripted()
    notebook = opened("paste.ipynb", "x = 1")
    panel = notebook.open_panel()
    picture = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(picture, "PNG")
    files = [
        ("red.png", picture.getvalue(), "image/png"),
        ("said.wav", (ROOT / "examples" / "data" / "command.wav").read_bytes(), "audio/wav"),
        ("rain.csv", b"city,rain\nRome,60\n", "text/csv"),
    ]
    chips = panel.locator(".jg-Composer .jg-Chip")
    for number, (name, content, mime) in enumerate(files, 1):
        notebook.composer.evaluate(PASTE, [name, base64.b64encode(content).decode(), mime])
        expect(chips).to_have_count(number)
    expect(chips.nth(0).locator("img")).to_have_count(1)
    expect(chips.nth(1).locator(".jg-Wave-bars")).to_have_count(1)
    expect(chips.nth(1).get_by_role("button", name="Play")).to_be_visible()
    expect(chips.nth(2)).to_have_text("rain.csv2 lines")
    notebook.shoot("chips")
    chips.nth(1).get_by_role("button", name="Remove").click()
    expect(chips).to_have_count(2)
    expect(notebook.ask("What is here?")).to_contain_text("What is here?")
    kinds = [type(part).__name__ for part in engine.requests[0].messages[-1].parts]
    assert kinds == ["ImagePart", "TextPart"]


def test_conversations_stay_and_can_be_found(opened, scripted):
    scripted()
    notebook = opened("talk.ipynb", "x = 1")
    panel = notebook.open_panel()
    expect(notebook.ask("first words")).to_contain_text("first words")
    panel.get_by_role("button", name="Answer again").click()
    expect(panel.locator(".jg-Versions")).to_have_text("2/2")
    panel.get_by_role("button", name="Earlier answer").click()
    expect(panel.locator(".jg-Versions")).to_have_text("1/2")
    panel.get_by_role("button", name="New conversation").click()
    # A model that follows instructions is offered more than the small one.
    expect(panel.locator(".jg-Offer").last).to_have_text("What is in this notebook?")
    expect(notebook.ask("other words")).to_contain_text("other words")
    notebook.page.reload()
    notebook.wait()
    notebook.open_panel()
    expect(panel.locator(".jg-Question-text")).to_have_text("other words")
    panel.get_by_role("button", name="Conversations").click()
    panel.get_by_role("searchbox", name="Search conversations").fill("FIRST")
    entries = panel.locator(".jg-Conversation")
    expect(entries).to_have_count(1)
    entries.first.click()
    expect(panel.locator(".jg-Question-text")).to_have_text("first words")
    panel.get_by_role("button", name="Conversations").click()
    panel.get_by_role("button", name="Delete first words").click()
    expect(panel.locator(".jg-Conversation", has_text="first words")).to_have_count(0)


def test_an_edited_question_is_asked_again(opened, scripted):
    scripted()
    notebook = opened("again.ipynb", "x = 1")
    panel = notebook.open_panel()
    expect(notebook.ask("wrong words")).to_contain_text("wrong words")
    panel.locator(".jg-Question").hover()
    panel.get_by_role("button", name="Edit and ask again").click()
    panel.get_by_role("textbox", name="Edit the question").fill("right words")
    panel.get_by_role("textbox", name="Edit the question").press("Enter")
    expect(panel.locator(".jg-Answer")).to_contain_text("right words")
    expect(panel.locator(".jg-Exchange")).to_have_count(1)
    panel.get_by_role("button", name="Show the exact prompt").click()
    expect(notebook.page.locator(".jg-Prompt")).to_contain_text("user: right words")
    notebook.page.locator(".jp-Dialog").get_by_role("button", name="Close").click()


def test_code_goes_to_the_notebook_and_runs_only_after_a_second_word(opened, scripted):
    scripted(Reply((Chunk(text="Try this:\n\n```python\nprint(6 * 7)\n```\n\nIt prints a number."),)))
    notebook = opened("code.ipynb", "x = 1")
    panel = notebook.open_panel()
    notebook.ask("code please")
    code = panel.get_by_role("group", name="Code")
    code.get_by_role("button", name="Insert below", exact=True).click()
    expect(notebook.cell(1)).to_contain_text("print(6 * 7)")
    code.get_by_role("button", name="Insert below and run…").click()
    dialog = notebook.page.locator(".jp-Dialog")
    expect(dialog).to_contain_text("print(6 * 7)")
    expect(notebook.page.locator(".jp-OutputArea-output")).to_have_count(0)
    dialog.get_by_role("button", name="Run").click()
    expect(notebook.cell(2).locator(".jp-OutputArea-output")).to_have_text("42")


def test_answers_load_nothing_and_run_nothing(opened, scripted):
    evil = '![x](https://example.org/a.png)\n\n<img src="https://example.org/b.png" onerror="window.broken = 1">\n\n'
    scripted(Reply((Chunk(text=evil + "<script>window.broken = 2</script>\n\nThe end."),)))
    notebook = opened("evil.ipynb", "x = 1")
    asked: list[str] = []
    notebook.page.on("request", lambda request: asked.append(request.url))
    notebook.open_panel()
    answer = notebook.ask("hello")
    expect(answer).to_contain_text("The end.")
    expect(answer.locator("img, script")).to_have_count(0)
    assert not [url for url in asked if "example.org" in url]
    assert notebook.page.evaluate("window.broken") is None


def test_two_tabs_share_the_model_and_keep_their_words(opened, scripted, page, lab):
    scripted()
    notebook = opened("tabs.ipynb", "x = 1")
    notebook.open_panel()
    expect(notebook.ask("asked in one tab")).to_contain_text("one tab")
    other = notebook.other_tab("tabs.ipynb", workspace="second")
    other.open_panel()
    expect(other.ask("asked in the other tab")).to_contain_text("other tab")
    expect(notebook.ask("and once more")).to_contain_text("once more")
    notebook.panel.get_by_role("button", name="Conversations").click()
    titles = notebook.panel.locator(".jg-Conversation-title")
    expect(titles.filter(has_text="asked in one tab")).to_have_count(1)
    expect(titles.filter(has_text="asked in the other tab")).to_have_count(1)
    notebook.shoot("tabs")
