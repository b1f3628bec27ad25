"""What a newcomer sees: the quickstart notebook in JupyterLab, with real answers of the demo model."""

from __future__ import annotations

import re

from playwright.sync_api import expect


def test_the_quickstart_runs_and_shows_its_answers(page, opened):
    notebook = opened("quickstart.ipynb")
    notebook.execute("notebook:run-all-cells")
    answers = page.locator(".jp-OutputArea-output .jp-RenderedMarkdown, .jp-RenderedMarkdown.jp-OutputArea-output")
    expect(answers.filter(has_text="This is a line chart with one blue line").first).to_be_visible()
    expect(answers.filter(has_text="make a scatter chart of column four")).to_be_visible(timeout=120_000)
    # The answer says what was sent, with a thumbnail, and what the model is.
    first = answers.filter(has_text="This is a line chart").first
    expect(first.locator("img")).to_have_count(1)
    expect(first).to_contain_text(re.compile(r"15 text \+ 48 image tokens"))
    expect(first).to_contain_text("counts and ranks are often wrong")
    page.locator(".jp-CodeCell", has_text="fig, ax = plt.subplots").evaluate("cell => cell.scrollIntoView(true)")
    expect(page.locator(".jp-CodeCell", has_text="/explain fig").locator("img").first).to_be_in_viewport()
    notebook.shoot("quickstart")
