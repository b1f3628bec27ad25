"""The documents are true: the file map, the commands, the code blocks, the version."""

import ast
import re
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from jupyter_gemma import __version__
from jupyter_gemma.cli import main

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jupyter_gemma"
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
TOP_FOLDERS = ("docs", "examples", "jupyter-config", "kernels", "labextension", "tests")
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def file_map() -> list[str]:
    """The first cells of the table under README's heading "File map"."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## File map")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def commands(path: Path) -> list[str]:
    """What the console blocks tell the reader to type, and what stands as a command in the text."""
    typed = re.findall(r"^\$ (.+)$", "\n".join(blocks(path, "console")), re.MULTILINE)
    quoted = re.findall(r"`((?:make|jupyter gemma) [^`]+)`", path.read_text(encoding="utf-8"))
    return [re.sub(r"\s+#.*", "", command) for command in typed + quoted]


def test_the_file_map_lists_real_files() -> None:
    assert file_map(), "README has a table under '## File map'"
    assert [entry for entry in file_map() if not (ROOT / entry).exists()] == []


def test_the_file_map_is_complete() -> None:
    sources = [path for path in PACKAGE.iterdir() if path.name[0] != "_" and path.name != "labextension"]  # is built
    folders = {f"jupyter_gemma/{path.name}/" for path in sources if path.is_dir()}
    modules = {f"jupyter_gemma/{path.name}" for path in PACKAGE.glob("*.py") if path.name != "__main__.py"}
    top = {f"{name}/" for name in TOP_FOLDERS if (ROOT / name).is_dir()}
    assert sorted((folders | modules | top) - set(file_map())) == []


@each_document
def test_commands_exist(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for command in commands(path):
        words = command.split()
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        if words[:2] == ["jupyter", "gemma"] and re.fullmatch(r"[a-z-]+", words[2]):
            with pytest.raises(SystemExit) as ended:
                main([words[2], "--help"])
            assert ended.value.code == 0, command


@each_document
def test_python_blocks_parse(path: Path) -> None:
    for block in blocks(path, "python"):
        ast.parse(TransformerManager().transform_cell(block))


@each_document
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_readme_opens_with_what_it_is_and_a_picture() -> None:
    opening = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert "![" in opening, "a picture of the real thing"
    assert "make demo" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_plain_about_the_demo_model() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "often wrong" in text
    assert "jupyter gemma pull" in text


def test_changelog_has_the_current_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", DOCUMENTS[2].read_text(encoding="utf-8"), re.MULTILINE)
