"""Opening and loading a checkpoint, whatever its form: the front door of this layer.

Weights go from the file straight into their place, one at a time. What has to be quantised is packed once and
kept (see ``packed``), so that the next start maps it into memory without copying.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from jupyter_gemma.errors import BadCheckpoint, OutOfMemory
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.decoder import Gemma
from jupyter_gemma.model.gguf import GgufSource
from jupyter_gemma.model.huggingface import INDEX_NAME, WEIGHTS_NAME, SafetensorsSource
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.packed import PACKED_NAME, PackedSource, write_packed
from jupyter_gemma.model.placement import (
    DISK,
    DeviceMap,
    DeviceName,
    budgets,
    choose_device,
    device_of,
    dispatch,
    float_dtype,
    place,
)
from jupyter_gemma.model.weights import (
    TABLE,
    WeightSource,
    quantisable,
    stored_bytes,
    stored_weight,
)
from jupyter_gemma.types import Progress, ProgressCallback

Quantization = Literal["auto", "none", "int8", "int4"]

#: From this many parameters on, "auto" quantises.
LARGE = 10**9

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What each choice makes of a decoder linear and of the embedding (which is also the head).
_TARGETS: Mapping[Quantization, tuple[WeightKind, WeightKind]] = {
    "none": ("float", "float"),
    "int8": ("int8", "int8"),
    "int4": ("int4", "int8"),
}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run. ``resident_bytes`` are the weights in memory (of all devices), without those on disk."""

    model: Gemma
    config: ModelConfig
    digest: str
    kinds: Mapping[str, WeightKind]
    device_map: DeviceMap
    resident_bytes: int


def load(
    path: Path,
    *,
    quantization: Quantization = "auto",
    device: DeviceName = "auto",
    max_memory: Mapping[str, str | int] | None = None,
    offload_dir: Path | None = None,
    cache_dir: Path | None = None,
    progress: ProgressCallback | None = None,
) -> LoadedModel:
    """Load a checkpoint.

    Args:
        path: what :func:`open_source` takes.
        quantization: see :func:`plan_kinds`.
        device: "auto" takes CUDA, else Apple's MPS, else the CPU. What a GPU cannot hold is kept in main memory.
        max_memory: limit by device, as ``{"cpu": "6GB", "cuda:0": "4GB"}``. What does not fit is read from disk
            for every pass; without ``max_memory`` nothing is.
        offload_dir: where the packed copy that is read from disk goes; ``cache_dir`` if None.
        cache_dir: where quantised weights are kept for the next start; None: nowhere.
        progress: called with bytes done.

    Raises:
        BadCheckpoint: see :func:`open_source`; a drafter alone.
        BadOption: a device or a limit that does not exist here.
        OutOfMemory: the weights do not fit, or there is no room to read them from disk.
    """
    source = open_source(path)
    if source.config.backbone_size is not None:
        raise BadCheckpoint(f"{path} is a drafter, no model of its own.", "Load the model that it drafts for.")
    kinds = plan_kinds(source, quantization)
    target = choose_device(device)
    dtype = float_dtype(target)
    model = _empty(source.config, kinds)
    device_map = place(model, dtype, budgets(target, max_memory))
    on_disk = DISK in device_map.values()
    if on_disk and max_memory is None:
        raise _too_large(source, kinds, dtype, target)
    folder = (offload_dir or cache_dir) if on_disk else cache_dir
    source = _ready(source, kinds, dtype, folder, on_disk, progress)
    _fill(model, source, kinds, device_map, dtype, progress)
    resident = sum(weight.nbytes for weight in model.parameters() if not weight.is_meta)
    dispatch(model, device_map, dtype, source.path if isinstance(source, PackedSource) else None)
    return LoadedModel(model, source.config, source.digest(), kinds, device_map, resident)


def open_source(path: Path) -> WeightSource:
    """Open a checkpoint: a folder (safetensors, GGUF or our packed format) or one ``.gguf`` file.

    Raises:
        BadCheckpoint: nothing there that can be read, or a file that is truncated, foreign or inconsistent.
    """
    if path.is_file():
        return _open_file(path)
    if (path / PACKED_NAME).is_file():
        return PackedSource(path / PACKED_NAME)
    if (path / WEIGHTS_NAME).is_file() or (path / INDEX_NAME).is_file():
        return SafetensorsSource(path)
    if files := sorted(path.glob("*.gguf")):
        return GgufSource(files)
    raise _nothing_usable(path)


def _open_file(path: Path) -> WeightSource:
    if path.suffix == ".gguf":
        return GgufSource([path])
    if path.suffix in _PICKLES:
        raise _refuse_pickle(path)
    raise BadCheckpoint(f"{path} is not a checkpoint.", "Give a .gguf file or the folder that holds the model.")


def _nothing_usable(path: Path) -> BadCheckpoint:
    if not path.is_dir():
        return BadCheckpoint(f"There is no checkpoint at {path}.", "Check the path.")
    for file in sorted(path.iterdir()):
        if file.suffix in _PICKLES:
            return _refuse_pickle(file)
    return BadCheckpoint(
        f"{path} holds no {WEIGHTS_NAME}, {INDEX_NAME}, {PACKED_NAME} or .gguf file.",
        "Fetch a checkpoint with: jupyter gemma pull.",
    )


def _refuse_pickle(path: Path) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path} is a pickle file; loading one can run any program hidden in it.",
        "Use the safetensors or GGUF version of this model.",
    )


def plan_kinds(source: WeightSource, quantization: Quantization = "auto") -> dict[str, WeightKind]:
    """How each weight is to be held.

    Weights that the file stores in int4 or int8 stay as they are. "none" keeps all others float, "int8" rounds
    decoder linears and the embedding, "int4" the linears to four bits. "auto" is "none" below :data:`LARGE`
    parameters, else "int4" except that weights which were already rounded once go to int8.
    """
    shapes = source.names()
    large = sum(math.prod(shape) for shape in shapes.values()) >= LARGE
    choice = ("int4" if large else "none") if quantization == "auto" else quantization
    linear, table = _TARGETS[choice]

    def kind(name: str, shape: tuple[int, ...]) -> WeightKind:
        stored = source.kind(name)
        if stored != "float" or not quantisable(name, shape):
            return stored
        wanted = table if name == TABLE else linear
        return "int8" if wanted == "int4" and quantization == "auto" and source.lossy(name) else wanted

    return {name: kind(name, shape) for name, shape in shapes.items()}


def _empty(config: ModelConfig, kinds: Mapping[str, WeightKind]) -> Gemma:
    with init_empty_weights():
        model = Gemma(config, kinds)
    model.tie()
    return model.requires_grad_(False).eval()


def _too_large(source: WeightSource, kinds: Mapping[str, WeightKind], dtype: torch.dtype, device: str) -> OutOfMemory:
    needed = stored_bytes(source.names(), kinds, dtype)
    free = sum(budgets(device, None).values())
    smaller = "" if "int4" in kinds.values() else ", quantization int4"
    return OutOfMemory(
        f"The model needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free.",
        f"Close other programs, choose a smaller model{smaller}, or let a part be read from disk (slow) "
        f'by a limit such as max_memory={{"cpu": "{free / 2e9:.1f}GB"}}.',
    )


def _ready(
    source: WeightSource,
    kinds: Mapping[str, WeightKind],
    dtype: torch.dtype,
    folder: Path | None,
    on_disk: bool,
    progress: ProgressCallback | None,
) -> WeightSource:
    """A source that needs no more quantising, and is a packed file if weights are to be read from disk."""
    as_wanted = all(source.kind(name) == kind for name, kind in kinds.items())
    if as_wanted and (isinstance(source, PackedSource) or not on_disk):
        return source
    if folder is None:
        if on_disk:
            raise OutOfMemory("A part of the model is to be read from disk, but no folder is given.", "Give cache_dir.")
        return source
    path = folder / _cache_name(source, kinds, dtype) / PACKED_NAME
    try:
        return _packed_copy(source, kinds, path, dtype, progress)
    except OSError as error:
        if on_disk:
            raise OutOfMemory(f"The packed model cannot be written to {path}: {error}.", "Free disk space.") from error
        if progress is not None:
            progress(Progress(f"going on without a packed copy ({error.strerror})"))
        return source


def _cache_name(source: WeightSource, kinds: Mapping[str, WeightKind], dtype: torch.dtype) -> str:
    text = json.dumps([source.digest(), sorted(kinds.items()), str(dtype)])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _packed_copy(
    source: WeightSource,
    kinds: Mapping[str, WeightKind],
    path: Path,
    dtype: torch.dtype,
    progress: ProgressCallback | None,
) -> PackedSource:
    """The copy of an earlier start if it is whole and of this checkpoint, else a new one."""
    try:
        packed = PackedSource(path)
        if packed.digest() == source.digest() and packed.kinds == kinds:
            return packed
    except BadCheckpoint:
        pass
    write_packed(source, kinds, path, dtype, progress)
    return PackedSource(path)


def _fill(
    model: Gemma,
    source: WeightSource,
    kinds: Mapping[str, WeightKind],
    device_map: DeviceMap,
    dtype: torch.dtype,
    progress: ProgressCallback | None,
) -> None:
    shapes = source.names()
    done, total = 0, stored_bytes(shapes, kinds, dtype)
    for name in shapes:
        device = device_of(name, device_map)
        if device == DISK:
            continue
        for entry, value in stored_weight(source, name, kinds[name], dtype).items():
            set_module_tensor_to_device(model, entry, device, value=value, dtype=value.dtype, clear_cache=False)
            done += value.nbytes
        if progress is not None:
            progress(Progress("loading weights", done, total))
    model.tie()
