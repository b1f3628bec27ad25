"""The panel as a package: one version, one size, and the routes it knows."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jupyter_gemma import __version__
from jupyter_gemma.lab.routes import ROUTES

ROOT = Path(__file__).parents[2]
PANEL = ROOT / "labextension"
BUNDLE = ROOT / "jupyter_gemma" / "labextension"
MAX_BYTES = 400_000
needs_bundle = pytest.mark.skipif(
    not BUNDLE.is_dir() and not os.environ.get("GEMMA_REQUIRE_ALL"),
    reason="needs the built panel (with Node.js 20: make panel)",
)


def test_there_is_one_version() -> None:
    package = json.loads((PANEL / "package.json").read_text())
    lock = json.loads((PANEL / "package-lock.json").read_text())
    assert {package["version"], lock["version"], lock["packages"][""]["version"]} == {__version__}
    assert f"VERSION = '{__version__}'" in (PANEL / "src" / "version.ts").read_text()


def test_the_lock_names_no_registry() -> None:
    assert '"resolved"' not in (PANEL / "package-lock.json").read_text()


@needs_bundle
def test_the_bundle_is_small_and_has_no_source_maps() -> None:
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".map"]
    scripts = [path for path in files if path.suffix == ".js"]
    assert scripts
    size = sum(path.stat().st_size for path in scripts)
    print(f"bundle: {size} bytes")
    assert size < MAX_BYTES


def build(root: Path, folder: Path) -> Path:
    """The wheel of ``root``, made where no program is on the path: without Node."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=root, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.iterdir()
    return wheel


def test_without_node_and_bundle_everything_else_is_built(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    ours = shutil.ignore_patterns("labextension", "models", "__pycache__")
    shutil.copytree(ROOT / "jupyter_gemma", root / "jupyter_gemma", ignore=ours)
    shutil.copytree(ROOT / "jupyter-config", root / "jupyter-config")
    shutil.copytree(ROOT / "kernels" / "kernelspec", root / "kernels" / "kernelspec")
    shutil.copytree(PANEL, root / "labextension", ignore=shutil.ignore_patterns("node_modules", "lib"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / name)
    names = zipfile.ZipFile(build(root, tmp_path / "dist")).namelist()
    assert "jupyter_gemma/client.py" in names
    assert any(name.endswith("jupyter_server_config.d/jupyter_gemma.json") for name in names)
    assert not [name for name in names if "labextensions" in name]


@needs_bundle
def test_the_installed_wheel_enables_the_panel_without_node(tmp_path: Path) -> None:
    wheel = build(ROOT, tmp_path / "dist")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--ignore-installed",  # else pip takes the package under test out of this environment
        "--prefix",
        str(tmp_path),
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    environment = {"PATH": "", "HOME": str(tmp_path), "JUPYTER_PATH": str(tmp_path / "share" / "jupyter")}
    listing = [sys.executable, "-m", "jupyter", "labextension", "list", "--verbose"]
    done = subprocess.run(listing, env=environment, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if f"jupyter-gemma v{__version__}" in line]
    assert "enabled" in line
    assert "OK" in line


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
