"""Notebook 7: the same plugins, served by the same Jupyter Server."""

from __future__ import annotations

from playwright.sync_api import expect


def test_a_plot_is_explained_in_notebook_7(page, lab, notebook7):
    source = "import matplotlib.pyplot as plt\n\nplt.figure(figsize=(4, 2.4))\nplt.plot([1, 2, 3]);"
    notebook = notebook7(lab.write("seven.ipynb", [source]))
    output = notebook.run(0).filter(has=page.locator("img"))
    notebook.hover(output, "Explain")
    expect(notebook.cell(0).locator(".jg-OutputAnswer")).to_contain_text("chart")
    panel = notebook.open_panel()
    expect(panel).to_contain_text("Ask your notebook")
    # The small model is offered what it has learnt.
    expect(panel.locator(".jg-Offer")).to_have_text(["Explain the last plot", "Transcribe the last clip"])
    box = panel.bounding_box()
    assert box["x"] + box["width"] <= page.viewport_size["width"]
    assert panel.evaluate("node => node.scrollWidth <= node.clientWidth")
    notebook.shoot("notebook7")
