"""``jupyter gemma doctor``: looks at everything that can be in the way, and says the way out of each."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jupyter_gemma.discovery import is_older, log_file, running_server
from jupyter_gemma.errors import GemmaError
from jupyter_gemma.settings import Settings
from jupyter_gemma.store import REAL_MODEL, find_model, list_models

DISK_BYTES = 35 * 10**9  # the 12B as it is fetched, and packed to 4 bits
MEMORY_BYTES = 10**9


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, whether it is well, what was seen, and the way out if it is not."""

    name: str
    well: bool
    seen: str
    fix: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, the quick things first; what fails unexpectedly is a finding too."""
    looks: list[tuple[str, Callable[[Settings], Iterator[Finding]]]] = [
        ("python", _python),
        ("runtime folder", _runtime_folder),
        ("disk", _disk),
        ("models", _models),
        ("server", _server),
        ("torch", _torch),
    ]
    for name, look in looks:
        try:
            yield from look(settings)
        except GemmaError as error:
            yield Finding(name, False, error.message, error.fix)
        except (ImportError, OSError) as error:
            yield Finding(name, False, f"{type(error).__name__}: {error}", "Install again: pip install jupyter-gemma")


def _python(settings: Settings) -> Iterator[Finding]:
    seen = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    yield Finding("python", sys.version_info >= (3, 10), seen, "Use Python 3.10 or newer.")


def _runtime_folder(settings: Settings) -> Iterator[Finding]:
    """Only its owner may be able to change what stands there."""
    folder = Path(settings.runtime_dir)
    if not folder.exists():
        yield Finding("runtime folder", True, f"{folder} will be made")
        return
    status = folder.stat()
    foreign = os.name != "nt" and status.st_uid != os.getuid()
    open_to_all = os.name != "nt" and bool(status.st_mode & 0o022)
    well = os.access(folder, os.W_OK) and not foreign and not open_to_all
    says = "belongs to another user" if foreign else "others can write there" if open_to_all else "is yours alone"
    yield Finding("runtime folder", well, f"{folder} {says}", f"chown and chmod 700 {folder}, or set runtime_dir.")


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = Path(settings.models_dir)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    seen = f"{free / 1e9:.1f} GB free for models in {folder}"
    fix = f"{REAL_MODEL} takes {DISK_BYTES / 1e9:.0f} GB: free some, or set models_dir to a folder on another disk."
    yield Finding("disk", free >= DISK_BYTES, seen, fix)


def _models(settings: Settings) -> Iterator[Finding]:
    for model in list_models(settings):
        fix = f"Correct its files, or delete it: jupyter gemma rm {model.name}"
        later = "" if model.path.exists() else " will be made from its package at its first use"
        yield Finding(f"model {model.name}", not model.problem, model.problem or f"{model.path}{later}", fix)
    yield Finding("default model", True, find_model("", settings).name)


def _server(settings: Settings) -> Iterator[Finding]:
    server = running_server(settings)
    if server is None:
        yield Finding("server", True, "none runs; the first question starts one")
        return
    seen = f"{server.url}, process {server.pid}, version {server.version}, log {log_file(settings)}"
    fix = "It is of an older version and will be replaced; at once with: jupyter gemma stop"
    yield Finding("server", not is_older(server.version), seen, fix)


def _torch(settings: Settings) -> Iterator[Finding]:
    import torch

    from jupyter_gemma.model.ops import load_kernels
    from jupyter_gemma.model.placement import free_memory

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    yield Finding("torch", True, f"{torch.__version__} on {', '.join(devices)}, {torch.get_num_threads()} threads")
    yield Finding(
        "compute kernels",
        load_kernels() is not None or devices != ["cpu"],
        "installed" if load_kernels() else "not installed: answers come slower on a CPU",
        "Install the wheel jupyter-gemma-kernels; from a checkout: pip install ./kernels/compute",
    )
    free = free_memory("cpu")["cpu"]
    fix = "Close other programs, or set max_memory and use a smaller model."
    yield Finding("memory", free >= MEMORY_BYTES, f"{free / 1e9:.1f} GB free", fix)
