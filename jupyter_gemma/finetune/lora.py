"""What learns: additions to the linear maps through the library peft (LoRA), or all weights; and writing it down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.finetune.plan import Plan
from jupyter_gemma.model.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, TARGETS, adapter_key
from jupyter_gemma.model.checkpoint import LoadedModel
from jupyter_gemma.model.decoder import Gemma
from jupyter_gemma.model.quant import Linear, QuantLinear

_HALF = {"lora_A": "A", "lora_B": "B"}


def make_trainable(loaded: LoadedModel, plan: Plan) -> dict[str, nn.Parameter]:
    """Get the model ready to learn by the plan's method; returns what learns, by name, in float32.

    Raises:
        BadOption: full fine-tuning of weights in few bits.
        ModelError: peft is not installed.
    """
    model = loaded.model.train()
    if plan.method == "full":
        few = [name for name, kind in loaded.kinds.items() if kind != "float"]
        if few:
            raise BadOption(f"{few[0]} is held in few bits, so it cannot learn.", "Use method lora or qlora.")
        model.requires_grad_(True)
    else:
        torch.manual_seed(plan.seed)
        _add_lora(model, plan)
    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    for weight in learning.values():
        weight.data = weight.data.float().clone()  # not a view of a file, and with bits enough for small steps
    return learning


def _add_lora(model: Gemma, plan: Plan) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners import lora
    except ImportError as error:
        raise ModelError(f"peft cannot be loaded: {error}.", "pip install 'jupyter-gemma[finetune]'") from error

    class _Lora(lora.Linear):  # type: ignore[misc,unused-ignore]
        """peft's own layer; only the sizes of our linear maps have to be told to it."""

        def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
            return module.in_features, module.out_features  # type: ignore[return-value]

    config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, lora_dropout=plan.dropout, target_modules=list(TARGETS))
    config._register_custom_module({Linear: _Lora, QuantLinear: _Lora})
    inject_adapter_in_model(config, model)


def save_adapter(learning: Mapping[str, Tensor], plan: Plan, base: str, architecture: str, folder: Path) -> None:
    """Write what was learnt as peft does, so that it can be used on the same model in transformers too.

    Raises:
        OSError: it cannot be written; a whole older adapter there stays.
    """
    tensors = {_key(name, architecture): weight.contiguous() for name, weight in learning.items()}
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": plan.rank,
        "lora_alpha": plan.alpha,
        "lora_dropout": plan.dropout,
        "target_modules": sorted(TARGETS),
        "bias": "none",
        "task_type": None,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / ADAPTER_WEIGHTS, tensors, {"format": "pt"})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _key(name: str, architecture: str) -> str:
    """``layers.0.self_attn.q_proj.lora_A.default.weight`` -> peft's key on the model of transformers."""
    place, half, _, _ = name.rsplit(".", 3)
    return adapter_key(place, _HALF[half], architecture)  # type: ignore[arg-type]


def write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that appears under its name only when it is whole and on disk.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(tensors, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    finally:
        part.unlink(missing_ok=True)


def full_weights(learning: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights by our names, without the head, which is the embedding table."""
    return {name: weight for name, weight in learning.items() if not name.startswith("head.")}
