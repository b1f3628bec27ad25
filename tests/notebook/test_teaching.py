"""``gemma.finetune``: a table to conversations, and a run in a process of its own."""

import json

import numpy as np
import pandas as pd
import pytest

from jupyter_gemma.client import Client
from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.finetune.data import Lines
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.context import parts_of
from jupyter_gemma.notebook.lessons import of_table, write_lessons
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import TextPart


@pytest.fixture
def gemma(tmp_path):
    settings = {"adapters_dir": str(tmp_path / "adapters"), "models_dir": str(tmp_path / "models")}
    return Gemma(Client(load_settings(settings)))


def test_rows_become_conversations(tmp_path):
    table = pd.DataFrame({"prompt": ["A", "B"], "answer": ["1", "2"], "image": ["p.png", None]})
    first, second = of_table(table)
    assert first["messages"][0]["content"][0]["image"].endswith("/p.png")
    assert [part["type"] for part in second["messages"][0]["content"]] == ["text"]
    assert second["messages"][1] == {"role": "assistant", "content": "2"}


def test_a_cell_holds_a_picture_or_clip_as_a_question_could(tmp_path):
    pixels, clip = np.full((32, 32, 3), 7, np.uint8), (np.zeros(8000), 16000)
    table = pd.DataFrame(
        {"prompt": ["A", "B", "C"], "answer": "1", "image": [pixels, None, None], "audio": [None, clip, float("nan")]}
    )
    write_lessons(of_table(table), tmp_path / "lines.jsonl")
    lines = Lines(tmp_path / "lines.jsonl")
    asked = [lines[at][0].parts for at in range(3)]
    assert asked == [(*parts_of(pixels), TextPart("A")), (*parts_of(clip), TextPart("B")), (TextPart("C"),)]


def test_a_table_without_the_columns_is_refused(gemma):
    with pytest.raises(BadOption, match="columns question, answer"):
        gemma.finetune(pd.DataFrame({"question": ["A"], "answer": ["1"]}), "x", show=False)


def test_it_learns_in_a_process_of_its_own(gemma):
    table = pd.DataFrame({"prompt": ["How many rows are there?"] * 4, "answer": ["seven"] * 4})
    keys = {"model": "demo", "steps": 2, "batch": 2, "threads": 1}
    folder = gemma.finetune(table, "rows", show=False, valid=table[:1], **keys)
    assert (folder / "adapter_model.safetensors").is_file()
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    assert len([json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]) == 4
    assert "valid" in json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


def test_what_the_process_says_is_the_error(gemma):
    with pytest.raises(ModelError, match=r"no key 'stepz'|unrecognized arguments"):
        gemma.finetune("nothing.jsonl", "x", show=False, stepz=2)
