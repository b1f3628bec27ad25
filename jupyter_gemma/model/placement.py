"""Which part of a model goes to which device, and reading the rest from disk: GPU, then CPU, then disk.

The mapping and the moving are ``accelerate``'s; here are the memory budgets they work with.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import convert_file_size_to_int, get_max_memory
from torch import nn

from jupyter_gemma.errors import BadOption

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
#: accelerate's names: the number of a CUDA device, "mps", "cpu" or "disk".
Device = int | str
DeviceMap = Mapping[str, Device]

DISK = "disk"
#: Of the free memory; the rest is for activations, caches and what other programs take meanwhile.
SHARE = 0.9

_CGROUP = Path("/sys/fs/cgroup")


def choose_device(device: DeviceName) -> Literal["cpu", "cuda", "mps"]:
    """Resolve "auto", and refuse a device that this machine (or this build of torch) lacks."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[device]:
        raise BadOption(f"There is no {device} device here.", "Use device auto or cpu.")
    return device


def float_dtype(device: str) -> torch.dtype:
    """Of float weights and activations: float32 where bfloat16 is slow."""
    return torch.float32 if device == "cpu" else torch.bfloat16


def free_memory(device: str) -> dict[Device, int]:
    """Free bytes of the devices that may hold weights when computing on ``device``, the fastest first."""
    found = get_max_memory()
    host = min(found.get("cpu", found.get("mps", 0)), cgroup_free())
    if device == "cuda":
        return {**{key: size for key, size in found.items() if isinstance(key, int)}, "cpu": host}
    return {device: host}


def cgroup_free(folder: Path = _CGROUP) -> int:
    """Bytes left under a container's limit (Linux control groups, version 2); without a limit a huge number."""
    try:
        limit, used = (int((folder / f"memory.{part}").read_text()) for part in ("max", "current"))
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    # Cached file pages count as used, but make way.
    return limit - used + int(statistics.get("inactive_file", 0))


def budgets(device: str, max_memory: Mapping[str, str | int] | None) -> dict[Device, int]:
    """Bytes of weights that each device may hold: a share of what is free, or the limit given for it.

    Raises:
        BadOption: a limit for a device that is not used, or not a size.
    """
    found = {key: int(size * SHARE) for key, size in free_memory(device).items()}
    for name, size in (max_memory or {}).items():
        key = _device(name)
        if key not in found:
            known = ", ".join(str(known) for known in found)
            raise BadOption(f"max_memory names the device {name!r}.", f"The devices in use are: {known}.")
        found[key] = _bytes(name, size)
    return found


def _device(name: str) -> Device:
    number = "0" if name == "cuda" else name.removeprefix("cuda:")
    return int(number) if number.isdecimal() else name


def _bytes(name: str, size: str | int) -> int:
    try:
        return int(convert_file_size_to_int(size))
    except ValueError:
        raise BadOption(f"max_memory of {name} is {size!r}.", 'Give a number of bytes, or text as "6GB".') from None


def place(model: nn.Module, dtype: torch.dtype, limits: Mapping[Device, int]) -> DeviceMap:
    """Module -> device; ``{"": device}`` if the first device holds everything.

    Args:
        model: on the meta device, tied.
        dtype: of its float weights when they are loaded.
        limits: bytes by device, the fastest first.
    """
    sizes = (weight.numel() * min(weight.itemsize, dtype.itemsize) for weight in model.parameters())
    first, limit = next(iter(limits.items()))
    if sum(sizes) <= limit:
        return {"": first}
    found: DeviceMap = infer_auto_device_map(
        model, max_memory=dict(limits), no_split_module_classes=["Block"], dtype=dtype
    )
    return found


def device_of(name: str, device_map: DeviceMap) -> Device:
    """The device of a weight: that of the innermost module that the map names."""
    parts = name.split(".")
    modules = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next(device_map[module] for module in modules if module in device_map)


def dispatch(model: nn.Module, device_map: DeviceMap, dtype: torch.dtype, packed: Path | None) -> None:
    """Let the parts find each other: weights elsewhere are fetched for each use.

    Args:
        dtype: of float weights in use.
        packed: the file that holds every weight under its name in the model; needed if ``device_map`` names the disk.
    """
    if len(set(device_map.values())) == 1 and DISK not in device_map.values():
        return
    aliases = {f"head.{name}": f"embed_tokens.{name}" for name, _ in model.get_submodule("head").named_parameters()}
    index = {
        name: {
            "safetensors_file": str(packed),
            "weight_name": aliases.get(name, name),
            "dtype": str(dtype if weight.dtype == torch.float32 else weight.dtype).removeprefix("torch."),
        }
        for name, weight in model.named_parameters(remove_duplicate=False)
        if device_of(name, device_map) == DISK
    }
    dispatch_model(model, dict(device_map), offload_index=index or None)


def release_freed_memory() -> None:
    """Give what was freed back to the system, to be called after a pass with many rows.

    The C library of Linux keeps freed activations for itself, in pieces that fit less and less: without this a long
    prompt takes a few hundred megabytes more, and keeps them. It costs less than a hundredth of such a pass. Elsewhere
    it does nothing.
    """
    if trim := _malloc_trim():
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """malloc_trim(3) of glibc; other C libraries have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
