"""Which token comes next: suppress, penalise, then the best or a draw after top-k, temperature, top-p and min-p."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jupyter_gemma.engine.tokenizer import read_json
from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.types import Sampling

_RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.1, 10.0),
    "seed": (0, 2**63 - 1),
    "max_tokens": (1, 2**31 - 1),
    "logprobs": (0, 20),
}


@dataclass(frozen=True)
class SamplingDefaults:
    """What ``generation_config.json`` says. ``eos`` is empty where it says nothing."""

    temperature: float = 1.0
    top_k: int = 64
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    suppress: tuple[int, ...] = ()
    eos: tuple[int, ...] = ()


def load_defaults(path: Path) -> SamplingDefaults:
    """Defaults of the checkpoint in the folder ``path``.

    Without ``generation_config.json`` (a GGUF file has none) Gemma's own: temperature 1, top_k 64, top_p 0.95.
    A file with ``do_sample`` false means temperature 0.
    """
    found = read_json(path / "generation_config.json")
    if not found:
        return SamplingDefaults()
    eos = found.get("eos_token_id") or ()
    return SamplingDefaults(
        temperature=_or(found.get("temperature"), 1.0) if found.get("do_sample", True) else 0.0,
        top_k=_or(found.get("top_k"), 0),
        top_p=_or(found.get("top_p"), 1.0),
        min_p=_or(found.get("min_p"), 0.0),
        repetition_penalty=_or(found.get("repetition_penalty"), 1.0),
        suppress=tuple(found.get("suppress_tokens") or ()),
        eos=(eos,) if isinstance(eos, int) else tuple(eos),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


class Sampler:
    """Chooses tokens for one answer. ``seed`` repeats it: the given one, or fresh entropy that can be read."""

    def __init__(self, sampling: Sampling, defaults: SamplingDefaults, vocab_size: int) -> None:
        """Merge the request with the defaults.

        Raises:
            BadOption: an option out of its range.
        """
        _check(sampling)
        self.seed: int = _or(sampling.seed, secrets.randbits(48))
        self.temperature: float = _or(sampling.temperature, defaults.temperature)
        self.top_k: int = min(_or(sampling.top_k, defaults.top_k) or vocab_size, vocab_size)
        self.top_p: float = _or(sampling.top_p, defaults.top_p)
        self.min_p: float = _or(sampling.min_p, defaults.min_p)
        self.penalty: float = _or(sampling.repetition_penalty, defaults.repetition_penalty)
        self._suppress = [number for number in defaults.suppress if number < vocab_size]
        self._random = torch.Generator().manual_seed(self.seed)

    def choose(self, logits: Tensor, history: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: float32 ``[V]``, left as they are.
            history: ids of prompt and answer so far, for the repetition penalty.

        Raises:
            ModelError: logits that are NaN, infinite or all suppressed.
        """
        logits = self._penalised(self._allowed(logits), history)
        if self.temperature == 0:
            best, place = torch.max(logits, dim=0)
            _check_finite(best)
            return int(place)
        scores, ids = self._candidates(logits, self.top_k)
        return int(ids[self._draw(scores)])

    def _allowed(self, logits: Tensor) -> Tensor:
        if not self._suppress:
            return logits
        return logits.index_fill(0, torch.tensor(self._suppress, device=logits.device), float("-inf"))

    def _penalised(self, logits: Tensor, history: Sequence[int]) -> Tensor:
        """Keskar et al. 2019 (CTRL), section 4.1, with the sign rule that everybody uses since."""
        if self.penalty == 1 or not history:
            return logits
        seen = torch.tensor(sorted(set(history)), device=logits.device)
        scores = logits[seen]
        scores = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return logits.scatter(0, seen, scores)

    def _candidates(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` best scores, best first, with their ids, on the CPU. NaN sorts before everything."""
        scores, ids = torch.topk(logits, count)
        scores, ids = scores.cpu().double(), ids.cpu()
        _check_finite(scores[0])
        return scores, ids

    def _draw(self, scores: Tensor) -> int:
        """Index drawn from descending ``scores`` after temperature, top-p and min-p."""
        chances = torch.softmax((scores - scores[0]) / self.temperature, dim=0)
        before = chances.cumsum(0) - chances
        kept = (before < self.top_p) & (chances >= self.min_p * chances[0])
        kept[0] = True  # top_p 0 and rounding
        return int(torch.multinomial(chances * kept, 1, generator=self._random))


def _check_finite(best: Tensor) -> None:
    if not math.isfinite(score := best.item()):
        raise ModelError(
            f"The model's best score is {score}, so no token can be chosen.",
            "Load the model without quantisation or in float32, and check its files.",
        )


def _check(sampling: Sampling) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise BadOption(f"{name} cannot be {value}.", f"Choose a value from {low:g} to {high:g}.")
    if "" in sampling.stop:
        raise BadOption("A stop string is empty.", "Leave it out.")
