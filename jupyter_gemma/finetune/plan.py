"""What a training run is told: the keys of its TOML file, which are also the options of the command."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from jupyter_gemma.errors import BadOption

Method = Literal["lora", "qlora", "full"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["auto", "float32", "bfloat16"]

_POSITIVE = ("batch", "pass_tokens", "rank", "alpha", "save_every", "rate", "clip", "epochs")
_NOT_NEGATIVE = ("steps", "warmup", "decay", "valid_every", "patience", "image_tokens")


@dataclass(frozen=True)
class Plan:
    """A training run. Steps, examples and tokens are counts; rates are AdamW's.

    Attributes:
        data: JSONL file of conversations, see ``data``. ``valid``: another, to measure on; "" for none.
        model: name of the base model; "" for the one that would answer.
        method: "lora" (additions to the weights as they are held), "qlora" (the same over int4 weights), "full".
        out: folder of the result, its checkpoint and its log.
        steps: of the optimiser; 0: as many as ``epochs`` of the data need.
        batch: lines of data that a step learns from.
        pass_tokens: the most tokens in one forward pass (a longer conversation goes alone): this bounds memory, and a
            step takes as many passes as it needs.
        rate, schedule, warmup, decay, clip: learning rate, how it goes on after ``warmup`` steps, weight decay, and
            the norm beyond which gradients are scaled down.
        rank, alpha, dropout: of LoRA; what is added is scaled by alpha / rank.
        seed: of the order of the data, the first values and dropout.
        precision: of the products; "auto": bfloat16 on a GPU, float32 on a CPU.
        checkpointing: compute a layer again for its gradient instead of keeping what it computed.
        image_tokens: soft tokens of a picture; 0: what the checkpoint says.
        valid_every: steps between two measurements; 0: once an epoch. ``patience``: measurements without progress
            after which training stops; 0: never.
        save_every: steps between two checkpoints.
    """

    data: str = ""
    valid: str = ""
    model: str = ""
    method: Method = "lora"
    out: str = ""
    steps: int = 0
    epochs: float = 3.0
    batch: int = 8
    pass_tokens: int = 4096
    rate: float = 2e-4
    schedule: Schedule = "cosine"
    warmup: int = 10
    decay: float = 0.0
    clip: float = 1.0
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    seed: int = 0
    precision: Precision = "auto"
    checkpointing: bool = False
    image_tokens: int = 0
    valid_every: int = 0
    patience: int = 0
    save_every: int = 50

    def __post_init__(self) -> None:
        """Check what has bounds.

        Raises:
            BadOption: naming the key, its value and its bounds.
        """
        for key, allowed in (("method", Method), ("schedule", Schedule), ("precision", Precision)):
            if getattr(self, key) not in get_args(allowed):
                raise _wrong(key, getattr(self, key), f"one of {', '.join(get_args(allowed))}")
        for key in _NOT_NEGATIVE:
            if getattr(self, key) < 0:
                raise _wrong(key, getattr(self, key), "0 or more")
        for key in _POSITIVE:
            if getattr(self, key) <= 0:
                raise _wrong(key, getattr(self, key), "more than 0")
        if not 0 <= self.dropout < 1:
            raise _wrong("dropout", self.dropout, "from 0 up to, not including, 1")
        if self.patience and not self.valid:
            raise BadOption("patience needs something to measure on.", "Give valid, a second file of conversations.")

    def digest(self) -> str:
        """Of all that decides how a run goes; two runs with the same one have the same losses."""
        told = {key: value for key, value in asdict(self).items() if key not in ("out", "save_every")}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def make_plan(values: Mapping[str, Any]) -> Plan:
    """A plan from values by key.

    Raises:
        BadOption: an unknown key (the nearest is named), a value of another type, or one out of bounds.
    """
    kinds = {field.name: type(field.default) for field in fields(Plan)}
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            raise BadOption(
                f"Fine-tuning has no key {key!r}.", f"Did you mean {near[0]}?" if near else f"Keys: {', '.join(kinds)}."
            )
        good = isinstance(value, (int, float)) if kinds[key] is float else isinstance(value, kinds[key])
        if not good or (isinstance(value, bool) and kinds[key] is not bool):
            raise _wrong(key, value, f"of type {kinds[key].__name__}")
    return Plan(**values)


def read_plan(path: Path) -> dict[str, Any]:
    """The keys and values of a TOML file; its ``data``, ``valid`` and ``out`` are relative to its folder.

    Raises:
        BadOption: no such file, or no TOML.
    """
    try:
        import tomllib as toml  # Python 3.11
    except ImportError:
        import tomli as toml  # type: ignore[import-not-found,no-redef]  # the extra `finetune` brings it
    try:
        values: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadOption(f"{path} cannot be read: {error}.", "Give a TOML file with the keys of a run.") from error
    for key in ("data", "valid", "out"):
        if isinstance(values.get(key), str) and values[key]:
            values[key] = str(path.parent / values[key])
    return values


def _wrong(key: str, value: object, wanted: str) -> BadOption:
    return BadOption(f"{key} cannot be {value!r}.", f"It must be {wanted}.")
