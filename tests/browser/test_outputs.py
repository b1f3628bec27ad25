"""Answers that stand under the output they speak of."""

from __future__ import annotations

import re

from playwright.sync_api import expect

PLOT = """import matplotlib.pyplot as plt
import numpy as np

days = np.linspace(0, 10, 200)
plt.plot(days, 15 + 5 * np.sin(2 * days))
plt.title("Temperature over time")
plt.xlabel("day")
plt.ylabel("degrees")
plt.show()
print("after the plot")"""


def test_a_plot_is_explained_under_it_and_stays(opened):
    notebook = opened("explain.ipynb", PLOT)
    outputs = notebook.run(0)
    plot = outputs.filter(has=notebook.page.locator("img"))
    expect(outputs).to_have_count(2)
    notebook.hover(plot, "Explain")
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
    again = opened("explain.ipynb")
    expect(again.cell(0).locator(".jg-OutputAnswer")).to_contain_text("This is a line chart")
    expect(again.cell(0).locator(".jp-OutputArea-child")).to_have_count(3)
