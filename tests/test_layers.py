"""The import table of the design, and the limits that keep the code readable."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jupyter_gemma"
CONTRACT = {"types", "errors"}
# layer -> the layers of ours it may import; `kernels` stands for the package jupyter_gemma_kernels.
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "errors": set(),
    "settings": {"errors"},
    "echo": CONTRACT,
    "wire": CONTRACT,
    "cards": CONTRACT,
    "store": CONTRACT | {"settings", "cards"},
    "pull": CONTRACT | {"settings", "store"},
    "discovery": CONTRACT | {"settings"},
    "probe": CONTRACT | {"wire"},
    "client": CONTRACT | {"settings", "discovery", "probe", "wire"},
    "doctor": CONTRACT | {"settings", "discovery", "store", "model"},
    "model": CONTRACT | {"settings", "kernels"},
    "engine": CONTRACT | {"settings", "model"},
    "server": CONTRACT | {"settings", "discovery", "wire"},
    "notebook": CONTRACT | {"settings", "client"},
    "lab": CONTRACT | {"settings", "client", "wire"},
    "bench": CONTRACT | {"settings", "model", "engine", "store", "client", "notebook"},
    "finetune": CONTRACT | {"settings", "model", "engine"},
    "__main__": {"cli"},
    "__init__": {"notebook", "lab"},
}
COMPOSITION = "cli"  # builds and connects the objects, so it may import every layer
HEAVY_LAYERS = {"model", "engine", "bench", "finetune"}
HEAVY = {"torch", "transformers", "numba", "librosa", "accelerate", "tokenizers", "gguf", "jupyter_gemma_kernels"}
NEVER_HEAVY = {"types", "errors", "settings", "echo", "wire", "cards", "store", "pull", "discovery", "client", "probe"}
NEVER_HEAVY |= {"server", "notebook", "lab", "__init__"}
# Only these open connections: discovery and the client to a model server, pull to the hub.
NETWORK = {
    "httpx": {"client", "pull"},
    "http.client": {"discovery"},
    "huggingface_hub": {"pull"},
    "requests": set(),
    "socket.create_connection": set(),
    "urllib.request": set(),
}
MAX_FILE, MAX_FUNCTION = 500, 80

FILES = sorted(PACKAGE.rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def module_name(path: Path) -> str:
    """``model/decoder.py`` -> ``model.decoder``; a folder's ``__init__.py`` -> the folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST, at_import: bool = True) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether the import runs when the module is imported) of each import below ``tree``."""
    if isinstance(tree, ast.Import):
        yield from ((alias.name, at_import) for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, f"relative import in line {tree.lineno}"
        yield from ((f"{tree.module}.{alias.name}", at_import) for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported(child, at_import and not runs_later(tree))


def runs_later(node: ast.AST) -> bool:
    """Whether what stands below ``node`` is not executed with the module."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


MODULES = {module_name(path): path for path in FILES}


def our_modules(path: Path) -> set[str]:
    """The modules of this package that ``path`` imports anywhere; ``kernels`` for the compiled ones."""
    found = set()
    for name, _ in imported(parse(path)):
        root, _, rest = name.partition(".")
        if root == "jupyter_gemma_kernels":
            found.add("kernels")
        if root == "jupyter_gemma":
            candidates = [rest, rest.rpartition(".")[0]]
            known = [candidate for candidate in candidates if candidate in MODULES]
            assert known, f"{path.name} imports {name}: no module of ours (the package root is for users)"
            found.add(known[0])
    return found


@every_file
def test_imports_follow_the_table(path: Path) -> None:
    layer = layer_of(module_name(path))
    if layer == COMPOSITION:
        return
    assert layer in ALLOWED, f"{layer} is not in the table"
    used = {layer_of(module) for module in our_modules(path)} - {layer}
    assert used <= ALLOWED[layer], f"{layer} must not import {sorted(used - ALLOWED[layer])}"


def test_the_root_imports_nothing_before_it_is_needed() -> None:
    names = {name for name, at_import in imported(parse(PACKAGE / "__init__.py")) if at_import}
    assert not {name for name in names if name.startswith("jupyter_gemma")}


def test_imports_make_no_cycle() -> None:
    graph = {module: our_modules(path) - {module} for module, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_kernels_have_one_door() -> None:
    users = {module for module, path in MODULES.items() if "kernels" in our_modules(path)}
    assert users <= {"model.ops"}


@every_file
def test_heavy_libraries_stay_in_their_layers(path: Path) -> None:
    layer = layer_of(module_name(path))
    for name, at_import in imported(parse(path)):
        if name.partition(".")[0] not in HEAVY:
            continue
        assert layer not in NEVER_HEAVY, f"{layer} imports {name}"
        assert layer in HEAVY_LAYERS or not at_import, f"{layer} imports {name} before it is needed"
        assert not name.startswith("transformers"), "transformers is an oracle for tests, never a dependency"


@every_file
def test_only_three_modules_open_connections(path: Path) -> None:
    layer = layer_of(module_name(path))
    for name, _ in imported(parse(path)):
        for library, users in NETWORK.items():
            assert layer in users or not f"{name}.".startswith(f"{library}."), f"{layer} imports {library}"


@every_file
def test_no_assert_and_no_bare_except(path: Path) -> None:
    for node in ast.walk(parse(path)):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}: raise an error of errors.py"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"bare except in line {node.lineno}"


@every_file
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES} - {PACKAGE}), ids=lambda path: path.name)
def test_each_layer_folder_says_what_it_is(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.is_file(), "a layer folder is a package"
    tree = parse(init)
    assert ast.get_docstring(tree), "say what the layer knows and what it must not know"
    assert len(tree.body) == 1, "nothing but the docstring"
    assert "must not" in " ".join((ast.get_docstring(tree) or "").lower().split())
