"""The generators of ``examples/demo_model``: what they say of a figure, a table or a clip is true, and repeatable."""

import ctypes
import io
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("seaborn", reason="needs the extra 'notebook-test'")

from examples.demo_model import figures, make, plot, plotly_axes, sentences, speech, tables
from examples.demo_model.plotly_axes import PlotlyAxes
from jupyter_gemma.finetune.data import Lines
from jupyter_gemma.finetune.evaluate import CHART_KINDS, FOLDER, Subject, evaluate, figures_json


@pytest.fixture
def speaker():
    try:
        ctypes.CDLL(speech.LIBRARY)
    except OSError as error:
        pytest.fail(str(error)) if os.environ.get("GEMMA_REQUIRE_ALL") else pytest.skip(str(error))
    return speech.Speaker()


def test_sentences_are_made_of_the_vocabulary_and_held_out_by_their_words():
    rng = np.random.default_rng(0)
    known = set(sentences.vocabulary())
    assert len(known) == 112
    trained = {sentences.sentence(rng, held_out=False) for _ in range(2000)}
    held_out = {sentences.sentence(rng, held_out=True) for _ in range(200)}
    assert {word for said in trained | held_out for word in said.split()} == known
    assert not trained & held_out
    assert all(sentences.is_held_out(said) for said in held_out)


def test_training_hears_no_new_voice():
    rng = np.random.default_rng(0)
    known = {speech.known_voice(rng).name for _ in range(2000)}
    new = {speech.new_voice(rng).name for _ in range(300)}
    assert not known & new
    speakers = {name.partition("+")[2] for name in known}
    assert not speakers & set(speech.NEW_SPEAKERS)
    assert not any(name.startswith(f"{speech.NEW_ACCENT}+") for name in known)


def test_a_room_adds_an_echo_that_dies_away():
    click = np.zeros(16000, np.float32)
    click[100] = 1.0
    heard = speech.in_room(click, np.random.default_rng(1), seconds=0.2)
    early, late = np.square(heard[101:900]).sum(), np.square(heard[2500:3300]).sum()
    assert 0 < late < early / 100
    assert not heard[:100].any()
    assert np.abs(heard).max() == pytest.approx(1.0)


def test_a_recording_is_longer_finite_and_within_range():
    clip = np.sin(np.arange(8000) / 5).astype(np.float32)
    for seed in range(20):
        heard = speech.recorded(clip, np.random.default_rng(seed))
        assert len(heard) > 8000
        assert np.isfinite(heard).all()
        assert np.abs(heard).max() <= 1


def test_espeak_says_a_sentence_with_every_voice(speaker):
    lengths = {}
    for name in (*speech.SPEAKERS, *speech.NEW_SPEAKERS):
        clip = speaker.say("plot column two", speech.Voice(f"gmw/en+{name}", 150, 50, 50, 0))
        lengths[name] = len(clip) / speech.RATE
        assert np.abs(clip).max() == pytest.approx(0.7, abs=1e-4)
    assert min(lengths.values()) > 0.6
    assert max(lengths.values()) < 4


def test_a_faster_voice_is_shorter(speaker):
    slow, fast = (len(speaker.say("run cell two", speech.Voice("gmw/en", speed, 50, 50, 0))) for speed in (120, 230))
    assert fast < 0.7 * slow


@pytest.mark.parametrize("shape", figures.SHAPES)
def test_shapes_do_what_they_are_called(shape):
    x = np.linspace(0, 1, 201)
    for seed in range(10):
        y = figures.SHAPES[shape](x, *np.random.default_rng(seed).random(2))
        steps = np.diff(y)
        turns = int((np.diff(np.sign(steps[np.abs(steps) > 1e-6])) != 0).sum())
        expected = {"peak": 1, "low": 1}.get(next((word for word in ("peak", "low") if word in shape.split()), ""), 0)
        assert turns >= 4 if "pattern" in shape else turns == expected
        if shape.startswith(("rises steadily", "rises quickly", "grows", "jumps")):
            assert y[-1] - y[0] > 0.5
        if shape.startswith(("falls steadily", "drops")):
            assert y[0] - y[-1] > 0.5


def test_captions_name_what_is_drawn():
    """The tallest bar of the caption is the tallest bar on the axes."""
    for seed in range(30):
        axes = figures.Figure().subplots()
        caption = figures.bars(figures.Hand(axes, np.random.default_rng(seed), 10.0))
        lengths = [
            max(bar.get_height(), bar.get_width()) if "vertical" in caption else bar.get_width() for bar in axes.patches
        ]
        assert f"with {figures.COUNTS[len(lengths)]} bars" in caption
        if found := re.search(r"est bar is the (\w+) .* the (\w+) is the shortest", caption):
            assert figures.ORDER.index(found[1]) == int(np.argmax(lengths))
            assert figures.ORDER.index(found[2]) == int(np.argmin(lengths))
        else:
            assert lengths == sorted(lengths, reverse="shrink" in caption)


@pytest.mark.parametrize("kind", figures.KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_drawn_and_named(kind):
    for seed in range(8):
        axes = figures.Figure().subplots()
        caption = kind(figures.Hand(axes, np.random.default_rng(seed), 10.0))
        assert sum(name in caption for name in CHART_KINDS) == 1, caption
        assert axes.has_data()


def test_figures_repeat_and_leave_no_style_behind():
    before = dict(figures.mpl.rcParams)
    first, second = (figures.draw_figure(np.random.default_rng(5), new_style=True) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first.png)).size in figures.SIZES
    assert dict(figures.mpl.rcParams) == before
    assert not set(figures.STYLES) & set(figures.NEW_STYLES)


@pytest.mark.parametrize("kind", figures.KINDS, ids=lambda kind: kind.__name__)
def test_plotly_draws_every_kind_from_the_same_data(kind):
    """What chance decides is the same; only seaborn, which plotly cannot use, draws otherwise from then on."""
    for seed in range(8):
        axes = PlotlyAxes(np.random.default_rng(seed))
        caption = kind(figures.Hand(axes, np.random.default_rng(seed), 10.0))
        assert sum(name in caption for name in CHART_KINDS) == 1, caption
        assert axes.figure.data
        if kind is figures.bars:
            lengths = axes.figure.data[0].x if "horizontal" in caption else axes.figure.data[0].y
            assert caption == figures.bars(figures.Hand(figures.Figure().subplots(), np.random.default_rng(seed), 10.0))
            if found := re.search(r"est bar is the (\w+) .* the (\w+) is the shortest", caption):
                assert figures.ORDER.index(found[1]) == int(np.argmax(lengths))
                assert figures.ORDER.index(found[2]) == int(np.argmin(lengths))


@pytest.mark.usefixtures("chromium")
def test_plotly_figures_are_pictures():
    drawn = figures.draw_plotly_figure(np.random.default_rng(3), new_style=True)
    assert Image.open(io.BytesIO(drawn.png)).size in plotly_axes.SIZES
    assert not set(plotly_axes.TEMPLATES) & set(plotly_axes.NEW_TEMPLATES)


def test_tables_have_one_right_answer():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        table = tables.draw_table(rng)
        written = str(table)
        for question, answer in table.questions(rng):
            if found := re.fullmatch(r"Which column has the (largest|smallest) (\w+)\?", question):
                short = {"minimum": "min", "maximum": "max"}.get(found[2], found[2])
                values = {n: int(v) for n, v in re.findall(rf"^(\w+): .*\b{short} (\d+)", written, re.MULTILINE)}
                best = (max if found[1] == "largest" else min)(values.values())
                assert [name for name, value in values.items() if value == best] == [answer]
            elif found := re.fullmatch(r"What is the (\w+) of (\w+)\?", question):
                short = {"minimum": "min", "maximum": "max"}.get(found[1], found[1])
                assert re.search(rf"^{found[2]}: .*\b{short} {answer}\b", written, re.MULTILINE)


@pytest.mark.usefixtures("chromium")
def test_training_data_is_read_by_the_trainer(speaker, tmp_path, monkeypatch):
    counts = {"figures": "4", "plotly-figures": "1", "clips": "3", "tables": "2"}
    given = [word for name, count in counts.items() for word in (f"--{name}", count)]
    monkeypatch.setattr(sys, "argv", ["make", str(tmp_path), *given])
    make.main()
    lines = Lines(tmp_path / "train.jsonl")
    assert len(lines) >= 3 * 5 + 3 + 2 * 3
    media = {type(part).__name__ for index in range(len(lines)) for message in lines[index] for part in message.parts}
    assert media == {"TextPart", "ImagePart", "AudioPart"}
    assert len(Lines(tmp_path / "valid.jsonl")) >= 3


def test_the_plot_shows_figures_that_eval_gives(tmp_path, monkeypatch):
    silent = evaluate(Subject("silent", lambda request: iter(())), (), None, lambda progress: None)
    (tmp_path / "silent").write_text(f"a table\n{json.dumps(figures_json({'silent': silent}))}\n")
    drawn = tmp_path / "scores.png"
    monkeypatch.setattr(sys, "argv", ["plot", str(drawn), *(f"{name}={tmp_path / 'silent'}" for name in "ab")])
    plot.main()
    with Image.open(drawn) as picture:
        assert picture.size[0] == 750


def test_the_suites_are_what_the_generators_make_and_nothing_trained_on():
    first = json.loads((FOLDER / "tables.jsonl").read_text().splitlines()[0])
    assert first == next(make.table_lines(make.chance(make.HELD_OUT_SEED, 2, 0)))
    heard = set()
    for name in ("clips-known", "clips-unknown"):
        lines = Lines(FOLDER / f"{name}.jsonl")
        assert all(sentences.is_held_out(lines[index][-1].text) for index in range(make.CLIPS))
        heard |= {lines[index][0].parts[0].data for index in range(make.CLIPS)}
    assert len(heard) == 2 * make.CLIPS
