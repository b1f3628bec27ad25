"""The measures by hand, suites through a scripted model, and ``jupyter gemma eval`` with the real demo model."""

import json
import math
from pathlib import Path

import pytest
import torch

from jupyter_gemma.cli import main
from jupyter_gemma.engine.engine import load_engine
from jupyter_gemma.errors import BadOption, UnsupportedInput
from jupyter_gemma.finetune.data import Lines
from jupyter_gemma.finetune.evaluate import (
    FOLDER,
    MEASURES,
    Subject,
    charts,
    distance,
    evaluate,
    exact,
    figures_json,
    perplexity,
    table,
    word_error_rate,
)
from jupyter_gemma.settings import Settings
from jupyter_gemma.store import find_model
from jupyter_gemma.types import Chunk

BARS = "This is a vertical bar chart with two bars. The tallest bar is the first from the left."
LINE = "This is a line chart with two lines. The red line rises steadily. The blue line stays flat."


@pytest.fixture
def engine(tmp_path):
    settings = Settings(models_dir=str(tmp_path), threads=1)
    model = find_model("demo", settings)
    loaded = load_engine(model.path, model.card, settings, lambda progress: None)
    yield loaded
    loaded.close()


def write(path: Path, *pairs: tuple[str, str]) -> Path:
    roles = ("user", "assistant")
    lines = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)]}
        for pair in pairs
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("said", "right", "count"),
    [("", "", 0), ("", "a b", 2), ("a b", "", 2), ("a c", "a b c", 1), ("b a", "a b", 2), ("a x c", "a b c", 1)],
)
def test_distance_counts_changed_words(said, right, count):
    assert distance(said.split(), right.split()) == count


def test_word_error_rate_is_over_all_words():
    pairs = [("Go to cell two.", "go to cell two"), ("undo undo", "undo"), ("", "redo")]
    assert word_error_rate(pairs) == pytest.approx(2 / 6)


def test_exact_answers():
    assert exact([("Sales.", "sales"), ("3", "4"), ("three", "3"), (" 7 ", "7")]) == 0.5


def test_captions_are_judged_by_kind_and_sentence():
    pairs = [
        (LINE.replace("stays flat", "falls steadily"), LINE),
        (BARS.replace("vertical", "horizontal"), BARS),
        ("sales per day", "sales by day"),
    ]
    assert charts(pairs) == {"chart_type": 0.5, "trend": 0.5, "extreme": 1.0, "words": pytest.approx(2 / 3)}


def test_an_answer_that_names_many_kinds_is_judged_by_its_first():
    assert charts([("A pie chart, not a line chart.", LINE)])["chart_type"] == 0


def test_what_is_not_asked_is_no_number():
    figures = charts([("sales", "sales")])
    assert math.isnan(figures["trend"])
    assert figures_json({"demo": figures})["eval.trend"] is None


def test_every_suite_is_read_and_is_held_out():
    for name in MEASURES:
        if name != "data":
            lines = Lines(FOLDER / f"{name}.jsonl")
            assert all(lines[index][-1].role == "assistant" for index in range(len(lines)))


def test_a_model_that_knows_all_answers_is_right_everywhere():
    right = {}
    for path in FOLDER.glob("*.jsonl"):
        lines = Lines(path)
        right.update({repr_of(lines[index][:-1]): lines[index][-1].text for index in range(len(lines))})
    subject = Subject("oracle", lambda request: iter([Chunk(text=right[repr_of(request.messages)])]))
    figures = evaluate(subject, (), None, lambda progress: None)
    assert figures == {
        **dict.fromkeys(("chart_type", "trend", "extreme", "words", "tables"), 1.0),
        **dict.fromkeys(("wer_known", "wer_unknown"), 0.0),
    }


def repr_of(messages):
    return tuple(part.text if hasattr(part, "text") else part.data for message in messages for part in message.parts)


def test_a_suite_that_cannot_be_asked_is_told_about():
    def refuse(request):
        raise UnsupportedInput("This model takes text only, not sound.", "Use another.")

    figures = evaluate(Subject("deaf", refuse), ("clips-known",), None, lambda progress: None)
    assert figures == {"clips-known.error": "This model takes text only, not sound. Use another."}
    assert table({"deaf": figures})[-1].startswith("deaf, clips-known: This model takes text only")


@pytest.mark.parametrize("name", ["chart", "data"])
def test_an_unknown_suite(name):
    with pytest.raises(BadOption, match="charts, clips-known, clips-unknown, tables, text"):
        evaluate(Subject("none", lambda request: iter(())), (name,), None, lambda progress: None)


def test_perplexity_is_that_of_the_tokens_of_the_answer(engine, tmp_path):
    lines = Lines(write(tmp_path / "own.jsonl", ("rows 5\nage: mean 3 min 1 max 9\nHow many rows are there?", "5")))
    (example,) = lines.examples(0, engine.builder)
    chances = torch.log_softmax(engine.model.logits_of(example.prompt), dim=-1)
    losses = [-chances[at - 1, example.prompt.ids[at]] for at in range(example.start, len(example))]
    assert perplexity(engine, lines) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert perplexity(engine, lines) < 1.5  # the demo knows this answer
    wrong = Lines(write(tmp_path / "wrong.jsonl", ("rows 5\nage: mean 3 min 1 max 9\nHow many rows are there?", "77")))
    assert perplexity(engine, wrong) > 10


def test_two_models_on_own_data_from_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUPYTER_GEMMA_MODELS_DIR", str(tmp_path / "models"))
    question = "rows 5\nage: mean 3 min 1 max 9\nHow many rows are there?"
    own = write(tmp_path / "own.jsonl", (question, "5"), (question, "many"))
    assert main(["eval", "demo", "demo:int8", "--data", str(own), "--threads", "1"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["demo", "demo:int8"]
    assert rows[0].split() == ["exact", "50.0", "%", "50.0", "%"]
    figures = json.loads(last)
    assert figures["eval.exact"] == figures["eval.demo:int8.exact"] == 0.5
    assert figures["eval.perplexity_data"] != figures["eval.demo:int8.perplexity_data"]  # it was quantised


@pytest.mark.parametrize(("arguments", "said"), [(["nobody"], "no model 'nobody'"), (["demo:int3"], "int3")])
def test_wrong_names_from_the_terminal(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JUPYTER_GEMMA_MODELS_DIR", str(tmp_path))
    assert main(["eval", *arguments]) in (1, 2)
    assert said in capsys.readouterr().err
