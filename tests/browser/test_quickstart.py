"""What a newcomer sees: the quickstart notebook in JupyterLab, with real answers of the demo model."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

IMAGES = Path(__file__).parents[2] / "docs" / "images"
# The execution indicator says idle before the kernel is connected, and a cell run then is dropped without a
# word: wait for the application's own promises.
READY = """async () => {
  const app = window.jupyterapp;
  await app.restored;
  let panel;
  while (!(panel = app.shell.currentWidget)?.sessionContext) {
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  await panel.context.ready;
  await panel.sessionContext.ready;
  await panel.sessionContext.session.kernel.info;
}"""


def test_the_quickstart_runs_and_shows_its_answers(page, lab):
    page.goto(lab.address("quickstart.ipynb"))
    page.locator("#jupyterlab-splash").wait_for(state="detached")
    page.evaluate(READY)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    answers = page.locator(".jp-OutputArea-output .jp-RenderedMarkdown, .jp-RenderedMarkdown.jp-OutputArea-output")
    expect(answers.filter(has_text="This is a line chart with one blue line").first).to_be_visible()
    expect(answers.filter(has_text="make a scatter chart of column four")).to_be_visible(timeout=120_000)
    # The answer says what was sent, with a thumbnail, and what the model is.
    first = answers.filter(has_text="This is a line chart").first
    expect(first.locator("img")).to_have_count(1)
    expect(first).to_contain_text(re.compile(r"15 text \+ 48 image tokens"))
    expect(first).to_contain_text("counts and ranks are often wrong")
    page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
    page.locator(".jp-CodeCell", has_text="fig, ax = plt.subplots").evaluate("cell => cell.scrollIntoView(true)")
    expect(page.locator(".jp-CodeCell", has_text="/explain fig").locator("img").first).to_be_in_viewport()
    IMAGES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(IMAGES / "quickstart.png"))
