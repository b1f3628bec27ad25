"""Losses and gradients against transformers with peft, and against finite differences."""

import json

import pytest
import torch

from jupyter_gemma.finetune.data import Lines, pack, packs
from jupyter_gemma.finetune.plan import Plan
from jupyter_gemma.finetune.train import Objective, rate_at
from jupyter_gemma.model.adapter import TARGETS


def examples_of(base, path):
    lines = Lines(path)
    return [example for index in range(len(lines)) for example in lines.examples(index, base.builder)]


def their_loss(model, example):
    """transformers' mean loss over the answer, which it computes from labels."""
    ids = example.prompt.ids[None]
    labels = ids.clone()
    labels[:, : example.start] = -100
    inputs = {"input_ids": ids, "labels": labels, "attention_mask": masks(model, example)}
    for soft in example.prompt.soft:
        if soft.patches is not None:
            inputs |= {"pixel_values": soft.patches[None], "image_position_ids": soft.positions[None]}
        else:
            inputs |= {"input_features": soft.frames[None]}
            inputs |= {"input_features_mask": torch.ones(1, soft.count, dtype=torch.bool)}
    return model(**inputs).loss


def masks(model, example):
    """The specified masks, as in tests/oracle/test_transformers.py."""
    place, blocks = torch.arange(len(example)), example.prompt.blocks()
    distance = place[:, None] - place[None, :]
    same = torch.zeros(len(place), len(place), dtype=torch.bool)
    if blocks is not None:
        same = (blocks[:, None] == blocks[None, :]) & (blocks >= 0)
    allowed = {
        "full_attention": distance >= 0,
        "sliding_attention": ((distance >= 0) | same) & (distance < model.config.text_config.sliding_window),
    }
    lowest = torch.finfo(torch.float32).min
    return {kind: torch.where(mask, 0.0, lowest)[None, None] for kind, mask in allowed.items()}


@pytest.mark.parametrize("number", range(5))
def test_losses_are_those_of_transformers(tiny, open_base, write_lines, conversations, number):
    base = open_base()
    example = examples_of(base, write_lines(conversations))[number]
    with torch.no_grad():
        ours = Objective(base.loaded.model, several=False)(pack([example])) / (len(example) - example.start)
        theirs = their_loss(tiny[0], example)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_pass_of_many_is_the_sum_of_passes_of_one(open_base, write_lines, conversations):
    base = open_base()
    examples = examples_of(base, write_lines(conversations))
    objective = Objective(base.loaded.model, several=False)
    with torch.no_grad():
        together = objective(pack(examples)).item()
        apart = sum(objective(pack([example])).item() for example in examples)
        in_passes = sum(objective(found).item() for found in packs(examples, 60))
    assert together == pytest.approx(apart, rel=1e-5)
    assert in_passes == pytest.approx(apart, rel=1e-5)


def shaken(training):
    """peft begins with zeros, where half of the gradients are zero."""
    torch.manual_seed(1)
    for weight in training.learning.values():
        weight.data += 0.1 * torch.randn_like(weight)
    return training


def slope(objective, found, weight, direction, size=1e-3):
    """The loss's derivative along ``direction`` by a central difference, in float64."""
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight.data += sign * size * direction
            values.append(objective(found).item())
            weight.data -= sign * size * direction
    return (values[0] - values[1]) / (2 * size)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_finite_differences(
    start, open_base, write_lines, conversations, method, checkpointing, monkeypatch
):
    training = shaken(start(method=method, checkpointing=checkpointing))
    objective = training.objective.double()
    head = objective.model.head  # the model's own scores are float32, too coarse for differences
    monkeypatch.setattr(objective.model, "logits", lambda hidden: head(hidden))
    examples = examples_of(training.base, write_lines(conversations))
    found = pack([doubled(example) for example in examples])
    objective(found).backward()
    random = torch.Generator().manual_seed(3)
    assert len(training.learning) > 40
    for name, weight in training.learning.items():
        direction = torch.randn(weight.shape, generator=random, dtype=torch.float64)
        expected = (weight.grad * direction).sum().item()
        measured = slope(objective, found, weight, direction, 1e-5)
        assert measured == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def doubled(example):
    from dataclasses import replace

    soft = tuple(
        replace(
            media,
            patches=None if media.patches is None else media.patches.double(),
            frames=None if media.frames is None else media.frames.double(),
        )
        for media in example.prompt.soft
    )
    return replace(example, prompt=replace(example.prompt, soft=soft))


def test_over_int4_weights_the_gradient_is_that_of_the_expanded_weights(start, open_base, write_lines, conversations):
    from jupyter_gemma.model.quant import Linear, Quantized, QuantLinear, dequantize

    training = shaken(start("int4", method="qlora"))
    model = training.base.loaded.model
    found = pack(examples_of(training.base, write_lines(conversations)))

    def gradients():
        training.objective.zero_grad()
        training.objective(found).backward()
        return {name: weight.grad.clone() for name, weight in training.learning.items()}

    quantised = gradients()
    count = 0
    for module in list(model.modules()):
        base = getattr(module, "base_layer", None)
        if isinstance(base, QuantLinear):
            module.base_layer = Linear(base.out_features, base.in_features)
            module.base_layer.weight.data = dequantize(Quantized(base.kind, base.tiles.data))
            count += 1
    assert count == 21
    for name, gradient in gradients().items():
        assert (gradient - quantised[name]).norm() <= 1e-4 * gradient.norm(), name


def test_what_learns_are_the_maps_of_the_layers_and_of_the_media(start):
    names = {name.rsplit(".", 4)[1] for name in start().learning}
    assert names == set(TARGETS)


# peft 0.21 asks transformers 5.23 by an old name
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_step_moves_as_transformers_with_peft_moves(tiny, start, write_lines, conversations):
    """The adapter that we wrote is read by peft on transformers' model; loss and gradients are the same there."""
    from peft import PeftModel

    training = shaken(start())
    training._write_result()
    theirs = PeftModel.from_pretrained(tiny[0], training.out, is_trainable=True)
    try:
        examples = examples_of(training.base, write_lines(conversations))
        for example in examples:
            ours = training.objective(pack([example])) / (len(example) - example.start)
            loss = their_loss(theirs.base_model.model, example)
            assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
            (ours * 1.0).backward()
            loss.backward()
        wanted = dict(theirs.named_parameters())
        for name, weight in training.learning.items():
            place = name.replace("vision_embedder.patch_dense", "embed_vision.patch_dense")
            place = place.replace("embed_vision.embedding", "embed_vision.multimodal_embedder.embedding")
            inner = "language_model." if name.startswith("layers") else ""
            gradient = wanted[f"base_model.model.model.{inner}{place}"].grad
            # Sums in another order: by the size of the whole gradient, for some of its values are near 0.
            assert (weight.grad - gradient).norm() <= 1e-4 * gradient.norm(), name
    finally:
        theirs.unload()


def test_the_rate_warms_up_and_falls(tmp_path):
    plan = Plan(rate=1.0, warmup=4)
    rates = [rate_at(plan, step, 24) for step in range(24)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 < rates[-1] < 0.12
    assert rate_at(Plan(rate=1.0, warmup=4, schedule="constant"), 20, 24) == 1.0


def test_training_learns_and_tells(start, write_lines, conversations):
    valid = str(write_lines(conversations[:2], "valid.jsonl"))
    training = start(steps=12, rate=1e-2, valid=valid, valid_every=4)
    state = training.run()
    entries = [json.loads(line) for line in (training.out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == list(range(1, 13))
    assert entries[-1]["loss"] < 0.8 * entries[0]["loss"]
    assert [entry["step"] for entry in entries if "valid" in entry] == [4, 8, 12]
    assert state.best == min(entry["valid"] for entry in entries if "valid" in entry)
    assert "<polyline" in (training.out / "loss.svg").read_text()


def test_it_stops_when_it_gets_no_better(start, write_lines, conversations):
    valid = str(write_lines(conversations[:1], "valid.jsonl"))
    training = start(steps=50, rate=1.0, clip=1e6, valid=valid, valid_every=1, patience=2)
    state = training.run()
    assert state.stale == 2
    assert state.step < 50
