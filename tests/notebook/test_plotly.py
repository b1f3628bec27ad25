"""plotly figures: drawn by kaleido without a network where it is installed, else as text that says why."""

import http.server
import importlib.util
import io
import sys
import threading
import types

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from jupyter_gemma.notebook import charts
from jupyter_gemma.notebook.context import item_of
from jupyter_gemma.notebook.items import Limits
from jupyter_gemma.types import ImagePart, TextPart


def figure(**layout):
    return go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 4, 9], name="squares"), layout={"title": "Growth", **layout})


class PageGenerator:
    """As kaleido has it: ``header`` opens the page."""

    header = "<!DOCTYPE html>\n<html>\n<head>\n<title>Kaleido</title>"

    def __init__(self, mathjax=None):
        self.mathjax = mathjax


@pytest.fixture
def kaleido(monkeypatch):
    """Stands in for kaleido, which needs a browser: ``draw`` is called with what kaleido would be."""
    module = types.ModuleType("kaleido")
    module.PageGenerator = PageGenerator
    module.calc_fig_sync = lambda *arguments, **named: module.draw(*arguments, **named)
    monkeypatch.setitem(sys.modules, "kaleido", module)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: module if name == "kaleido" else find(name))
    return module


def test_it_is_drawn_in_a_page_that_loads_nothing(kaleido):
    asked = {}

    def draw(fig, opts, kopts):
        asked.update(fig=fig, **opts, **kopts)
        buffer = io.BytesIO()
        Image.new("RGB", (700, 500), "white").save(buffer, format="PNG")
        return buffer.getvalue()

    kaleido.draw = draw
    item = item_of(figure(), Limits())
    assert item.note == "picture 700 × 500"
    assert [type(part) for part in item.parts] == [ImagePart]
    assert asked["fig"]["layout"]["title"] == {"text": "Growth"}
    assert asked["timeout"] == charts.DRAW_SECONDS
    page = asked["page_generator"]
    assert page.mathjax is False
    head = page.header.partition("<head>")[2]
    assert head.startswith('<meta http-equiv="Content-Security-Policy" content="default-src file: data: blob:')
    assert head.endswith("<title>Kaleido</title>")


@pytest.mark.parametrize("error", [TimeoutError(), RuntimeError("no Chrome"), AttributeError("another kaleido")])
def test_where_kaleido_cannot_its_data_go_as_text(kaleido, error):
    def draw(*arguments, **named):
        raise error

    kaleido.draw = draw
    item = item_of(figure(), Limits())
    assert item.note == f"plotly figure as text (kaleido: {type(error).__name__})"
    assert "'squares': x 3 values from 1 to 3" in item.parts[0].text


def test_without_kaleido_the_note_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    item = item_of(go.Figure(go.Scatter(x=np.arange(500), name="line")), Limits())
    assert item.note == "plotly figure as text (kaleido would draw it)"
    assert isinstance(item.parts[0], TextPart)
    assert "'line': x 500 values from 0 to 499: 0, 41, 82" in item.parts[0].text


@pytest.mark.usefixtures("chromium")
def test_the_real_one_draws_and_fetches_nothing():
    fetched = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        source = f"http://127.0.0.1:{server.server_port}/remote.png"
        item = item_of(figure(images=[{"source": source, "x": 0, "y": 1, "sizex": 1, "sizey": 1}]), Limits())
        server.shutdown()
    assert item.note == "picture 700 × 500"
    assert fetched == []
