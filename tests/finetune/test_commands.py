"""``jupyter gemma finetune`` and ``merge``, from a TOML file to a model that is found by its name."""

import shutil

import pytest

from jupyter_gemma.cli import main
from jupyter_gemma.errors import BadOption
from jupyter_gemma.finetune.plan import make_plan, read_plan


@pytest.fixture
def folders(tiny, tmp_path, monkeypatch):
    """Models and adapters of a user who has the tiny model."""
    monkeypatch.setenv("JUPYTER_GEMMA_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("JUPYTER_GEMMA_ADAPTERS_DIR", str(tmp_path / "adapters"))
    shutil.copytree(tiny[1], tmp_path / "models" / "tiny")
    return tmp_path


def test_from_a_toml_file_to_a_merged_model(folders, media, write_lines, conversations, capsys):
    write_lines(conversations)
    (media / "run.toml").write_text('model = "tiny"\ndata = "train.jsonl"\nsteps = 5\nrank = 4\n')
    assert main(["finetune", str(media / "run.toml"), "--steps", "2", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert "2 steps done" in told.out
    assert "step 2, loss" in told.err
    assert (folders / "adapters" / "train" / "adapter_model.safetensors").is_file()
    assert main(["merge", "train", "taught", "--model", "tiny", "--form", "packed"]) == 0
    assert main(["models"]) == 0
    assert "taught" in capsys.readouterr().out


def test_what_is_wrong_is_said_in_two_lines(folders, capsys):
    assert main(["finetune"]) == 2
    assert "no data to learn from" in capsys.readouterr().err
    assert main(["finetune", "--data", "nowhere.jsonl", "--model", "tiny"]) == 1
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "nowhere.jsonl cannot be read: [Errno 2] No such file or directory: 'nowhere.jsonl'.",
        "Give a file of conversations.",
    ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"stepz": 3}, "Did you mean steps"),
        ({"steps": "3"}, "of type int"),
        ({"steps": True}, "of type int"),
        ({"rate": 0}, "more than 0"),
        ({"batch": 0}, "more than 0"),
        ({"warmup": -1}, "0 or more"),
        ({"dropout": 1.0}, "from 0 up to"),
        ({"method": "magic"}, "one of lora, qlora, full"),
        ({"patience": 2}, "Give valid"),
    ],
)
def test_wrong_keys_and_values(values, said):
    with pytest.raises(BadOption, match=said):
        make_plan(values)


def test_a_file_that_is_no_toml(tmp_path):
    (tmp_path / "run.toml").write_text("steps = = 3")
    with pytest.raises(BadOption, match="cannot be read"):
        read_plan(tmp_path / "run.toml")
