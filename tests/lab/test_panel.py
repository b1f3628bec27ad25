"""The panel as a package: one version, one size, and the routes it knows."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from jupyter_gemma import __version__
from jupyter_gemma.lab.routes import ROUTES

ROOT = Path(__file__).parents[2]
PANEL = ROOT / "labextension"
BUNDLE = ROOT / "jupyter_gemma" / "labextension"
MAX_BYTES = 400_000


def test_there_is_one_version() -> None:
    package = json.loads((PANEL / "package.json").read_text())
    lock = json.loads((PANEL / "package-lock.json").read_text())
    assert {package["version"], lock["version"], lock["packages"][""]["version"]} == {__version__}
    assert f"VERSION = '{__version__}'" in (PANEL / "src" / "version.ts").read_text()


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (PANEL / "package-lock.json").read_text()


def test_the_bundle_is_small_and_has_no_source_maps() -> None:
    if shutil.which("node") is None and not os.environ.get("GEMMA_REQUIRE_ALL"):
        pytest.skip("needs Node.js 20, which builds the bundle (pip install -e .)")
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".map"]
    scripts = [path for path in files if path.suffix == ".js"]
    assert scripts
    size = sum(path.stat().st_size for path in scripts)
    print(f"bundle: {size} bytes")
    assert size < MAX_BYTES


def test_only_one_file_speaks_http() -> None:
    call = re.compile(r"makeRequest|\bfetch\(['\"`]|XMLHttpRequest|EventSource")
    assert [path.name for path in PANEL.glob("src/**/*.ts*") if call.search(path.read_text())] == ["api.ts"]


def test_the_panel_knows_every_route() -> None:
    source = (PANEL / "src" / "api.ts").read_text()
    calls = set(re.findall(r"_(?:json|lines)(?:<.*?>+)?\((?:'[A-Z]+', )?['`]([a-z]+)", source))
    assert calls == {pattern.split("/")[2] for pattern, _ in ROUTES}


def test_no_shortcut_is_taken() -> None:
    """Neither by JupyterLab, whose schemas are installed, nor twice by us."""
    schema = json.loads((PANEL / "schema" / "plugin.json").read_text())
    ours = [tuple(shortcut["keys"]) for shortcut in schema["jupyter.lab.shortcuts"]]
    assert len(set(ours)) == len(ours)
    schemas = Path(sys.prefix, "share", "jupyter", "lab", "schemas").rglob("*.json")
    settings = [json.loads(path.read_text(encoding="utf-8")) for path in schemas]
    taken = {tuple(found["keys"]) for each in settings for found in each.get("jupyter.lab.shortcuts", [])}
    assert len(taken) > 50
    for keys in ours:
        assert not {keys[:length] for length in range(1, len(keys) + 1)} & taken, keys


def test_every_command_of_the_schema_exists() -> None:
    schema = (PANEL / "schema" / "plugin.json").read_text()
    commands = set(re.findall(r"'(jupyter-gemma:[a-z-]+)'", (PANEL / "src" / "tokens.ts").read_text()))
    assert set(re.findall(r'"command": "(.*?)"', schema)) <= commands
