"""Accepted answers as conversations: of saved notebooks, and of a running kernel."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient

from jupyter_gemma.cli import main
from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.finetune.data import Lines
from jupyter_gemma.notebook.bundle import bundle, metadata
from jupyter_gemma.notebook.exchange import ToolRun
from jupyter_gemma.notebook.harvest import PANEL_ANSWER, harvest
from jupyter_gemma.notebook.lessons import lessons_of
from jupyter_gemma.notebook.provenance import name_of
from jupyter_gemma.types import AudioPart, Chunk, ImagePart, TextPart, VideoPart

EXAMPLES = Path(__file__).parents[2] / "examples"


def cell(answer, number=1, tags=(), outputs=()):
    """A saved cell that shows ``answer``."""
    shown = {"output_type": "display_data", "data": bundle(answer), "metadata": metadata(answer)}
    return {
        "cell_type": "code",
        "execution_count": number,
        "source": "%gemma",
        "metadata": {"tags": list(tags)},
        "outputs": [shown, *outputs],
    }


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">\n<rect width="5" height="5"/></svg>'


@pytest.fixture
def save(tmp_path):
    def write(*cells, name="a.ipynb"):
        (tmp_path / name).write_text(json.dumps({"nbformat": 4, "cells": cells}))
        return tmp_path / name

    return write


def texts(lessons):
    return [[message["content"] for message in each["messages"]] for each in lessons]


ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}


# -- what is saved -----------------------------------------------------------------------------------------------


def inputs_of(answer):
    return metadata(answer)["jupyter_gemma"]["inputs"]


def test_words_are_saved_and_nothing_of_an_object(run, shell):
    shell.user_ns |= {"df": pd.DataFrame({"city": ["Zanzibar"]}), "secret": "Zanzibar", "pixels": np.zeros((32, 32, 3))}
    assert [each.get("text") for each in inputs_of(run("%gemma --system Briefly. Why?"))] == ["Briefly.", "Why?"]
    assert [each.get("text") for each in inputs_of(run("%gemma --new {pixels} Why?"))] == [None, "Why?"]
    for line in ("{df} Why?", "-w df Why?", "--rows 0 -w df Why?", "Is {secret} far?"):
        saved = metadata(run(f"%gemma --new -m big {line}"))
        assert [each.get("text") for each in saved["jupyter_gemma"]["inputs"]] == [None]
        assert "Zanzibar" not in json.dumps(saved)


def test_earlier_turns_are_named_and_not_saved_again(run):
    run("%gemma -m big One?")
    assert [each.get("text") for each in inputs_of(run("%gemma -m big Two?"))] == [None, None, "Two?"]


def test_with_keep_all_is_saved_and_comes_back(run, shell, save, magics):
    shell.user_ns |= {"df": pd.DataFrame({"city": ["Zanzibar"]}), "pixels": np.zeros((32, 32, 3))}
    asked = "%gemma -m big --no-history"
    before = run(f"{asked} {{pixels}} Why?")
    magics.keep = True
    answers = [run(f"{asked} {line}") for line in ("{pixels} Why?", "{df} Why?", "--rows 0 {df} Which?")]
    assert before.cached == "" != answers[0].cached, "an answer that was kept before is saved as this question says"
    assert "Zanzibar" not in json.dumps(metadata(answers[2]))
    lessons, left = harvest([save(*map(cell, answers))])
    assert (lessons, left) == (lessons_of(answers), [])
    assert not any("inputs" in path.read_text() for path in magics.session.asker.cache.folder.glob("*.json"))


# -- which are accepted ------------------------------------------------------------------------------------------


def test_a_conversation_is_one_line_to_its_last_answer(run, save):
    cells = [cell(run(f"%gemma -m big {word}?"), at) for at, word in enumerate(("One", "Two"))]
    lessons, left = harvest([save(*cells)])
    assert texts(lessons) == [["One?", "It rises.", "Two?", "It rises."]]
    assert left == []


def test_what_follows_a_rejected_answer_is_left_out_too(run, client, save):
    first = run("%gemma -m big One?")
    client.chunks[0] = Chunk(text="Then it ")
    cells = [cell(first, 1, ["rejected"]), cell(run("%gemma -m big Two?"), 2), cell(run("%gemma -m big --new Three?"))]
    lessons, left = harvest([path := save(*cells)])
    assert texts(lessons) == [["Three?", "Then it rises."]]
    assert left == [
        f"{path}, cell [1]: its cell is tagged rejected",
        f"{path}, cell [2]: an earlier answer of its conversation is left out",
    ]


def test_the_last_answer_to_a_question_counts(run, client, save):
    first = run("%gemma -m big --no-history --no-cache Why?")
    client.chunks[0] = Chunk(text="[It] ")
    again = run("%gemma -m big --no-history --no-cache Why?")
    lessons, left = harvest([path := save(cell(first, 3)), save(cell(again), cell(again), name="b.ipynb")])
    assert texts(lessons) == [["Why?", "[It] rises."]]
    assert left == [f"{path}, cell [3]: the same was asked again later, and answered otherwise"]


def test_answers_that_are_not_accepted_are_named(run, client, save):
    good = run("%gemma -m big Why?")
    panel = {"output_type": "display_data", "data": {PANEL_ANSWER: {}, "text/plain": "It falls."}, "metadata": {}}
    old = replace(good, record={key: value for key, value in good.record.items() if key != "inputs"})
    cells = {
        "its cell failed": cell(good, outputs=[ERROR]),
        "it was stopped or cut before its end": cell(replace(good, finish="length")),
        "it called add, and what came back is not saved": cell(replace(good, trace=(ToolRun("add", {}, "3"),))),
        "a transcript of this kind is put together from many answers": cell(
            replace(good, record={**good.record, "transcript": "srt"})
        ),
        "an older version saved it, without what is needed": cell(old),
        "it is empty": cell(replace(good, text=" ")),
        "the panel saves answers without what was asked": {**cell(good), "outputs": [panel]},
    }
    lessons, left = harvest([save(*cells.values(), cell(good))])
    assert texts(lessons) == [["Why?", "It rises."]]
    assert [reason.partition(": ")[2] for reason in left] == list(cells)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no notebook"), ("[]", "is no notebook"), (None, "cannot be read")]
)
def test_files_that_are_no_notebooks(tmp_path, text, said):
    path = tmp_path / "x.ipynb"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RequestError, match=said):
        harvest([path])


# -- pictures and clips ------------------------------------------------------------------------------------------

CELLS = [
    "%load_ext jupyter_gemma\nimport matplotlib.pyplot as plt, pandas as pd\nfrom IPython.display import Audio",
    "figure, axes = plt.subplots()\naxes.plot([1, 2, 4]);",
    "%gemma /explain",
    "%gemma {figure} What does this plot show?",
    "%gemma /transcribe 'data/command.wav'",
    "from jupyter_gemma import gemma\nclip = Audio(open('data/sort.wav', 'rb').read())\nclip",
    "answer = gemma('Transcribe the audio.', clip)",
    "%gemma -w pd.DataFrame({'n':[1,2]}) How many rows are there?",
    "%gemma --max-tokens 3 /explain",
    "%gemma --keep -w pd.DataFrame({'n':[1,2,3]}) How many rows are there?",
]


def test_an_executed_notebook_becomes_lines_that_training_takes(demo_server, tmp_path, capsys):
    shutil.copytree(EXAMPLES / "data", tmp_path / "data")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in CELLS],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(notebook, tmp_path / "work.ipynb")
    out = tmp_path / "new" / "lines.jsonl"
    assert main(["data", str(tmp_path / "work.ipynb"), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert "has 4 conversations; 3 answers were left out" in told.out
    assert [line.partition(", cell ")[2] for line in told.err.splitlines()] == [
        "[9]: it was stopped or cut before its end.",
        "[4]: its picture is neither shown in the notebook, nor a file named there, nor saved by --keep.",
        "[8]: the text of a table or another value stood in its question, which only --keep saves.",
    ]
    lines = Lines(out)
    records = [
        (output.metadata["jupyter_gemma"], output.data["text/plain"])
        for at in (2, 4, 6, 9)
        for output in notebook.cells[at].outputs
    ]
    for index, (record, plain) in enumerate(records):
        asked, answer = lines[index]
        assert [name_of(part) for part in asked.parts] == [each["sha256"] for each in record["inputs"]]
        assert plain.startswith(f"{answer.text}\n\n[")
    assert [type(lines[at][0].parts[0]) for at in range(4)] == [ImagePart, AudioPart, AudioPart, TextPart]
    assert lines[1][1].text == "make a scatter chart of column four"
    assert main(["data", str(tmp_path / "work.ipynb"), "--out", str(out)]) == 2
    assert "may have been corrected" in capsys.readouterr().err


def test_a_drawing_is_found_as_it_was_sent_and_broken_outputs_are_passed_over(run, shell, save):
    shell.user_ns["drawing"] = SVG.encode()
    shown = {"output_type": "display_data", "data": {"image/png": "?", "image/svg+xml": SVG.splitlines(keepends=True)}}
    answer = run("%gemma -m big {drawing} Why?")
    (line,), left = harvest([save(cell(answer, outputs=[shown]))])
    assert (line, left) == (lessons_of([answer])[0], [])


def test_a_notebook_without_answers_gives_no_file(save, tmp_path, capsys):
    assert main(["data", str(save()), "--out", str(tmp_path / "x.jsonl")]) == 1
    assert "no answer to learn from" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


# -- of a running kernel -----------------------------------------------------------------------------------------


def test_answers_of_a_kernel_bring_tables_and_pictures(run, shell, tmp_path):
    shell.user_ns |= {"df": pd.DataFrame({"city": ["Rome"]}), "pixels": np.zeros((32, 32, 3))}
    answers = [run("%gemma -m big -w df Why?"), run("%gemma -m big --no-history {pixels} Why?")]
    of_table, of_picture = lessons_of(answers)
    assert "Rome" in of_table["messages"][0]["content"]
    (tmp_path / "lines.jsonl").write_text(json.dumps(of_picture))
    assert Lines(tmp_path / "lines.jsonl")[0][0] == answers[1].request.messages[0]


def test_answers_that_cannot_be_learnt_are_refused(run):
    good = run("%gemma -m big Why?")
    with pytest.raises(BadOption, match="Answer 1 cannot be learnt: it was stopped"):
        lessons_of([good, replace(good, finish="cancelled")])
    asked = replace(good.request.messages[-1], parts=(VideoPart(()), TextPart("Why?")))
    with pytest.raises(BadOption, match="video"):
        lessons_of([replace(good, request=replace(good.request, messages=(asked,)))])
    with pytest.raises(BadOption, match="no table"):
        lessons_of([])
