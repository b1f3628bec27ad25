"""Arguments win over the environment, that over files; a typo is an error that names the nearest key."""

import json
from pathlib import Path

import pytest

from jupyter_gemma.errors import BadOption
from jupyter_gemma.settings import Settings, load_settings


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("jupyter_gemma.settings.jupyter_config_path", lambda: [str(tmp_path)])
    return tmp_path


def write(config_dir: Path, **traits: object) -> None:
    (config_dir / "jupyter_gemma_config.json").write_text(json.dumps({"Settings": traits}))


def test_defaults(config_dir: Path) -> None:
    settings = load_settings({}, {})
    assert (settings.model, settings.device, settings.start_server, settings.port) == ("", "auto", True, 0)
    assert Path(settings.models_dir).parts[-2:] == ("gemma", "models")
    assert settings.base_url == ""


def test_precedence(config_dir: Path) -> None:
    write(config_dir, model="file", device="cpu", threads=3)
    environment = {"JUPYTER_GEMMA_MODEL": "environment", "JUPYTER_GEMMA_DEVICE": "cuda", "OTHER": "x"}
    settings = load_settings({"model": "argument", "device": None}, environment)
    assert (settings.model, settings.device, settings.threads) == ("argument", "cuda", 3)


def test_environment_defaults_to_the_process(config_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_GEMMA_MODEL", "here")
    assert load_settings().model == "here"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("START_SERVER", "false", False),
        ("START_SERVER", "1", True),
        ("START_TIMEOUT", "2.5", 2.5),
        ("PORT", "8765", 8765),
        ("MAX_MEMORY", "cpu=6GB", {"cpu": "6GB"}),
    ],
)
def test_environment_values_are_parsed(config_dir: Path, name: str, text: str, value: object) -> None:
    settings = load_settings({}, {f"JUPYTER_GEMMA_{name}": text})
    assert getattr(settings, name.lower()) == value


def test_a_python_config_file(config_dir: Path) -> None:
    write(config_dir, model="json", port=1)
    (config_dir / "jupyter_gemma_config.py").write_text("c.Settings.model = 'python'\n")
    settings = load_settings({}, {})
    assert (settings.model, settings.port) == ("python", 1)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [({"modle": "x"}, {}), ({}, {"JUPYTER_GEMMA_MODLE": "x"})],
    ids=["argument", "environment"],
)
def test_a_typo_names_the_nearest_key(config_dir: Path, arguments: dict, environment: dict) -> None:
    with pytest.raises(BadOption, match=r"'modle'\. Did you mean model\?"):
        load_settings(arguments, environment)


def test_a_typo_in_a_file(config_dir: Path) -> None:
    write(config_dir, quantisation="int4")
    with pytest.raises(BadOption, match=r"Did you mean quantization\?"):
        load_settings({}, {})


def test_a_key_like_no_other_lists_all(config_dir: Path) -> None:
    with pytest.raises(BadOption) as caught:
        load_settings({"zzzzzzzz": 1}, {})
    assert all(name in caught.value.fix for name in Settings.class_trait_names(config=True))


def test_a_wrong_section_is_an_error(config_dir: Path) -> None:
    (config_dir / "jupyter_gemma_config.json").write_text('{"Setings": {"model": "x"}}')
    with pytest.raises(BadOption, match="section 'Setings'"):
        load_settings({}, {})


@pytest.mark.parametrize(
    ("arguments", "environment", "trait"),
    [
        ({"device": "tpu"}, {}, "device"),
        ({"port": "many"}, {}, "port"),
        ({}, {"JUPYTER_GEMMA_PORT": "many"}, "port"),
        ({}, {"JUPYTER_GEMMA_START_SERVER": "perhaps"}, "start_server"),
        ({"quantization": "int3"}, {}, "quantization"),
    ],
)
def test_a_wrong_value_names_its_trait(config_dir: Path, arguments: dict, environment: dict, trait: str) -> None:
    with pytest.raises(BadOption, match=trait):
        load_settings(arguments, environment)


@pytest.mark.parametrize(("suffix", "text"), [("json", "{"), ("py", "c.Settings.model = oops"), ("py", "1 +")])
def test_a_broken_file_is_named(config_dir: Path, suffix: str, text: str) -> None:
    (config_dir / f"jupyter_gemma_config.{suffix}").write_text(text)
    with pytest.raises(BadOption, match=rf"jupyter_gemma_config\.{suffix} cannot be read"):
        load_settings({}, {})


def test_a_section_of_the_wrong_kind(config_dir: Path) -> None:
    (config_dir / "jupyter_gemma_config.json").write_text('{"Settings": 5}')
    with pytest.raises(BadOption, match="section 'Settings'"):
        load_settings({}, {})


def test_every_setting_is_documented() -> None:
    assert all(trait.help for trait in Settings.class_traits(config=True).values())
