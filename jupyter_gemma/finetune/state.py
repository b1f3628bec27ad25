"""Checkpoints of a run: what learns, the optimiser's moments, and how far it is, in one safetensors file.

All chance comes from the seed and the number of the step, so nothing else has to be kept for the same losses.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from jupyter_gemma.errors import BadCheckpoint, BadOption
from jupyter_gemma.finetune.lora import write_whole

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class State:
    """How far a run is: steps done, the best held-out loss, and measurements since then."""

    step: int = 0
    best: float = float("inf")
    stale: int = 0
    done: bool = False


def save(path: Path, state: State, digest: str, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint; the one before it stays until the new one is whole and on disk.

    Args:
        tensors: what :func:`tensors_of` found.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, tensors, {"state": json.dumps(asdict(state)), "run": digest})


def load(path: Path, digest: str, learning: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> State:
    """Go on from the checkpoint at ``path``; a fresh state where there is none.

    Raises:
        BadOption: it belongs to another run. BadCheckpoint: it cannot be read.
    """
    if not path.exists():
        return State()
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if told.get("run") != digest:
                raise BadOption(
                    f"{path} belongs to a run with other data or settings.", "Give another out, or delete that file."
                )
            moved = set(file.keys())
            for name, weight in learning.items():
                weight.data.copy_(_like(file.get_tensor(name), weight))
                if f"step {name}" not in moved:  # data without sound move no projection of sound
                    continue
                kept = {part: file.get_tensor(f"{part} {name}") for part in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {
                    part: value if part == "step" else _like(value, weight) for part, value in kept.items()
                }
            return State(**json.loads(told["state"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {error}.", "Delete it; the run begins anew.") from error


def tensors_of(learning: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What learns by name, and AdamW's state of it by part and name; each whole (every process must ask)."""
    moments = {
        f"{part} {name}": whole(value)
        for name, weight in learning.items()
        for part, value in optimizer.state[weight].items()
    }
    return {name: whole(weight) for name, weight in learning.items()} | moments


def whole(value: Tensor) -> Tensor:
    """The tensor on the CPU; one that FSDP has cut into shards is gathered (every process must ask)."""
    gathered = value.full_tensor() if isinstance(value, DTensor) else value
    return gathered.detach().cpu().contiguous()


def _like(value: Tensor, weight: Tensor) -> Tensor:
    if isinstance(weight, DTensor):
        return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
    return value.to(weight.device)
