"""The training loop: one process, or several that `accelerate launch` starts.

A step learns from ``batch`` conversations: each process takes its share, packs it into passes, and the gradient is
that of the mean loss over all answer tokens of the step, however they fell into passes and processes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.finetune import state as states
from jupyter_gemma.finetune.data import Lines, Pack, chosen, packs
from jupyter_gemma.finetune.export import save_model
from jupyter_gemma.finetune.journal import Journal
from jupyter_gemma.finetune.lora import full_weights, make_trainable, save_adapter
from jupyter_gemma.finetune.plan import Plan
from jupyter_gemma.model.cache import LayerCache, SequenceCache
from jupyter_gemma.model.checkpoint import LoadedModel
from jupyter_gemma.model.decoder import Gemma, Prompt, Span
from jupyter_gemma.types import Progress, ProgressCallback


class _OnePass(LayerCache):
    """Keeps nothing: in training a conversation is one pass, and its keys and values carry gradients."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All that there is to see, also when a layer is computed again for its gradient."""
        return keys, values


def spans_of(model: Gemma, pack: Pack) -> list[Span]:
    """One for each example of ``pack``; nothing is cached."""
    spans = []
    for count, blocks in zip(pack.counts, pack.blocks, strict=True):
        cache = SequenceCache(())
        shapes = (model.config.layer(index) for index in range(len(model.layers)))
        cache.layers = [_OnePass(shape.window, 0) for shape in shapes]
        spans.append(Span(count, cache, blocks))
    return spans


class Objective(nn.Module):
    """The model and what is to be made small: a module of its own, so that DDP and FSDP can wrap it.

    Args:
        several: other processes learn too. They add up gradients weight by weight and in one order, so every pass
            must have all of them, also those of projections of pictures and sound that it does not use.
    """

    def __init__(self, model: Gemma, *, several: bool) -> None:
        super().__init__()
        self.model = model
        self.several = several

    def forward(self, pack: Pack) -> Tensor:
        """The sum over all answer tokens of -log p, in nats; float32 []."""
        embedded = self.model.embed(pack.prompt)
        if self.several:
            embedded = embedded + sum(0.0 * weight.sum() for weight in self._projections())
        hidden = self.model(embedded, spans_of(self.model, pack))
        return F.cross_entropy(self.model.logits(hidden[pack.rows]), pack.targets, reduction="sum")

    def _projections(self) -> Iterator[Tensor]:
        for module in ("vision_embedder", "embed_vision", "embed_audio"):
            if hasattr(self.model, module):
                yield from (weight for weight in getattr(self.model, module).parameters() if weight.requires_grad)


@dataclass(frozen=True)
class Base:
    """The model to teach: loaded, with its prompts, its folder and its name."""

    loaded: LoadedModel
    builder: PromptBuilder
    path: Path
    name: str


def rate_at(plan: Plan, step: int, steps: int) -> float:
    """The learning rate of step ``step`` (from 0): a linear warm-up, then as the schedule says, down to a tenth."""
    if step < plan.warmup:
        return plan.rate * (step + 1) / (plan.warmup + 1)
    if plan.schedule == "constant":
        return plan.rate
    way = (step - plan.warmup) / max(1, steps - plan.warmup)
    return plan.rate * (0.55 + 0.45 * math.cos(math.pi * way))


class Training:
    """A run of ``plan`` on ``base``. It goes on from the checkpoint in ``plan.out``, if one is there.

    Raises:
        GemmaError: data, plan and model do not go together; a line of the data is wrong.
    """

    def __init__(self, base: Base, plan: Plan, progress: ProgressCallback) -> None:
        self.base, self.plan, self.progress = base, plan, progress
        self.lines = Lines(Path(plan.data))
        self.valid = Lines(Path(plan.valid)) if plan.valid else None
        self.steps = plan.steps or max(1, math.ceil(plan.epochs * len(self.lines) / plan.batch))
        self.learning = make_trainable(base.loaded, plan)
        device = base.loaded.model.norm.weight.device.type
        half = plan.precision == "bfloat16" or (plan.precision == "auto" and device == "cuda")
        self.accelerator = Accelerator(mixed_precision="bf16" if half else "no", cpu=device == "cpu")
        if plan.batch % self.accelerator.num_processes:
            raise BadOption(
                f"batch is {plan.batch}, which {self.accelerator.num_processes} processes cannot share evenly.",
                "Give a multiple.",
            )
        if plan.checkpointing:
            for block in base.loaded.model.layers:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        self._prepare()

    def _prepare(self) -> None:
        objective = Objective(self.base.loaded.model, several=self.accelerator.num_processes > 1)
        optimizer = torch.optim.AdamW(self.learning.values(), lr=self.plan.rate, weight_decay=self.plan.decay)
        self.objective, self.optimizer = self.accelerator.prepare(objective, optimizer)
        # FSDP has put others in their place, under the same names.
        model = self.accelerator.unwrap_model(self.objective).model
        self.learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.out = Path(self.plan.out)
        self.digest = f"{self.plan.digest()} {_digest_of(self.lines.path)}"
        self.state = states.load(self.out / states.CHECKPOINT, self.digest, self.learning, self._adamw)

    @property
    def _adamw(self) -> torch.optim.Optimizer:
        found: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return found

    def run(self) -> states.State:
        """Train to the end, or until the held-out loss has not fallen for ``patience`` measurements.

        Raises:
            ModelError: the loss is no number any more, or the disk is full; the last checkpoint stays.
        """
        journal = Journal(self.out, self.state.step) if self.accelerator.is_main_process else None
        while self.state.step < self.steps and not self.state.done:
            entry = self._step()
            if self._due(self.plan.valid_every or math.ceil(len(self.lines) / self.plan.batch)) and self.valid:
                entry["valid"] = self._measure(self.valid)
            if journal is not None:
                journal.note(entry)
            last = self.state.step == self.steps or self.state.done
            if last or self.state.step % self.plan.save_every == 0:
                self._save()
                if journal is not None:
                    journal.draw()
            self.progress(Progress(f"step {self.state.step}, loss {entry['loss']:.4f}", self.state.step, self.steps))
        self.state.done = True
        # A process that ends while another still writes the result takes that one with it.
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.state

    def _due(self, every: int) -> bool:
        return self.state.step % every == 0 or self.state.step == self.steps

    def _step(self) -> dict[str, Any]:
        begin, step, plan = time.perf_counter(), self.state.step, self.plan
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        mine = chosen(step, plan.batch, len(self.lines), plan.seed)[rank::world]
        found = self._packs(self.lines, mine)
        tokens = sum(len(pack.targets) for pack in found)
        total = int(self.accelerator.reduce(torch.tensor(tokens, device=self.accelerator.device)).item())
        torch.manual_seed((plan.seed << 32) + step * world + rank)
        for group in self._adamw.param_groups:
            group["lr"] = rate_at(plan, step, self.steps)
        loss = self._backward(found, total * 1.0)
        self.accelerator.clip_grad_norm_(self.learning.values(), plan.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        seconds = time.perf_counter() - begin
        rate = rate_at(plan, step, self.steps)
        return {"step": self.state.step, "loss": loss, "rate": rate, "tokens": total, "seconds": round(seconds, 3)}

    def _backward(self, found: list[Pack], total: float) -> float:
        """Gradients of the mean over ``total`` tokens; returns that mean, over all processes."""
        world = self.accelerator.num_processes
        passes = torch.tensor(len(found), device=self.accelerator.device)
        most = int(self.accelerator.gather(passes.view(1)).max().item())
        summed = torch.zeros((), device=self.accelerator.device)
        for number in range(most):
            # Who has fewer passes computes one again for nothing: all must meet in each.
            share = 1.0 if number < len(found) else 0.0
            last = number == most - 1
            with nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss = self.objective(found[min(number, len(found) - 1)]) * share
                self.accelerator.backward(loss * (world / total))
            summed += loss.detach()
        mean = float(self.accelerator.reduce(summed).item()) / total
        if not math.isfinite(mean):
            raise ModelError(f"The loss is {mean} in step {self.state.step + 1}.", "Give a smaller rate.")
        return mean

    def _packs(self, lines: Lines, indices: list[int]) -> list[Pack]:
        tokens = self.plan.image_tokens or None
        examples = [example for index in indices for example in lines.examples(index, self.base.builder, tokens)]
        return [_moved(pack, self.accelerator.device) for pack in packs(examples, self.plan.pass_tokens)]

    def _measure(self, lines: Lines) -> float:
        """The held-out loss a token; the result is written when it is the best so far."""
        summed, tokens = 0.0, 0
        self.objective.eval()
        with torch.no_grad():
            for indices in _groups(len(lines), self.plan.batch):
                for pack in self._packs(lines, indices):
                    summed += float(self.objective(pack).item())
                    tokens += len(pack.targets)
        self.objective.train()
        mean = summed / tokens
        if mean < self.state.best:
            self.state.best, self.state.stale = mean, 0
            self._write_result()
        else:
            self.state.stale += 1
            self.state.done = 0 < self.plan.patience <= self.state.stale
        return mean

    def _save(self) -> None:
        """A checkpoint; without a held-out file also the result."""
        tensors = states.tensors_of(self.learning, self._adamw)
        if self.accelerator.is_main_process:
            try:
                states.save(self.out / states.CHECKPOINT, self.state, self.digest, tensors)
            except OSError as error:
                raise _disk(self.out, error) from error
        if self.valid is None and (self.state.step == self.steps or self.state.done):
            self._write_result()

    def _write_result(self) -> None:
        architecture = self.base.loaded.config.architecture
        tensors = {name: states.whole(weight) for name, weight in self.learning.items()}
        if not self.accelerator.is_main_process:
            return
        try:
            if self.plan.method == "full":
                save_model(full_weights(tensors), self.base.path, self.base.loaded.config, self.out)
            else:
                save_adapter(tensors, self.plan, self.base.name, architecture, self.out)
        except OSError as error:
            raise _disk(self.out, error) from error


def _disk(folder: Path, error: OSError) -> ModelError:
    return ModelError(
        f"{folder} cannot be written: {error}.",
        "The last checkpoint is whole. Free disk space and start the same command again: it goes on from there.",
    )


def _groups(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def _moved(pack: Pack, device: torch.device) -> Pack:
    if device.type == "cpu":
        return pack
    soft = tuple(
        replace(
            media,
            patches=None if media.patches is None else media.patches.to(device),
            positions=None if media.positions is None else media.positions.to(device),
            frames=None if media.frames is None else media.frames.to(device),
        )
        for media in pack.prompt.soft
    )
    prompt = Prompt(pack.prompt.ids.to(device), soft)
    return replace(pack, prompt=prompt, rows=pack.rows.to(device), targets=pack.targets.to(device))


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
