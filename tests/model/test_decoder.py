"""Invariants of the decoder, each written once, on tiny random models (no files, no oracle)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.config import AttentionConfig, AudioConfig, ModelConfig, SpecialIds, VisionConfig
from jupyter_gemma.model.decoder import Gemma, Prompt, SoftTokens, Span
from jupyter_gemma.model.ops import GPU_INT4, PLAIN, PLAIN_OPS, Path

WINDOW = 12
IMAGE, AUDIO = 250, 251


def tiny_config(**changes: object) -> ModelConfig:
    fields: dict[str, object] = {
        "architecture": "gemma4_unified",
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": ("sliding", "sliding", "full", "sliding", "full"),
        "attention": {
            "sliding": AttentionConfig(4, 2, 8, WINDOW, 1e4, 4),
            "full": AttentionConfig(4, 1, 16, None, 1e6, 2, value_from_key=True),
        },
        "norm_eps": 1e-6,
        "attention_scale": 1.0,
        "value_norm": True,
        "layer_scalar": True,
        "logit_softcap": 30.0,
        "max_positions": 4096,
        "ids": SpecialIds(bos=2, eos=(1,), pad=0, image=IMAGE, audio=AUDIO),
        "vision": VisionConfig(patch=4, positions=16, embed_dim=24),
        "audio": AudioConfig(frame=10),
        "bidirectional_images": True,
    }
    return ModelConfig(**{**fields, **changes})  # type: ignore[arg-type]


def random_model(config: ModelConfig, seed: int = 0) -> Gemma:
    generator = torch.Generator().manual_seed(seed)
    model = Gemma(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.2 * noise if is_norm else noise * parameter.shape[-1] ** -0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> Gemma:
    return random_model(tiny_config())


def text(length: int, seed: int = 1) -> Prompt:
    return Prompt(torch.randint(3, 240, (length,), generator=torch.Generator().manual_seed(seed)))


def mixed(seed: int = 2) -> Prompt:
    """Text, a picture longer than the window, sound, a small picture, text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 240, (60,), generator=generator)
    ids[5:21], ids[30:37], ids[40:44] = IMAGE, AUDIO, IMAGE

    def picture(offset: int, columns: int, rows: int) -> SoftTokens:
        count = columns * rows
        places = torch.stack((torch.arange(count) % columns, torch.arange(count) // columns), dim=1)
        return SoftTokens(offset, patches=torch.rand(count, 48, generator=generator), positions=places)

    sound = SoftTokens(30, frames=torch.randn(7, 10, generator=generator))
    return Prompt(ids, (picture(5, 4, 4), sound, picture(40, 2, 2)))


def in_chunks(model: Gemma, prompt: Prompt, cuts: list[int], cache: SequenceCache | None = None) -> torch.Tensor:
    """Logits [T, vocab] computed in spans that end at ``cuts``; starts at the length of ``cache``."""
    cache = cache or SequenceCache.for_model(model.config)
    rows, blocks = model.embed(prompt), prompt.blocks()
    out = []
    for end in cuts:
        part = slice(cache.length, end)
        span = Span(end - cache.length, cache, None if blocks is None else blocks[part])
        out.append(model.logits(model(rows[part], [span])))
    return torch.cat(out)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to float32 rounding in another order of summation."""
    error = (actual - expected).abs()
    worst = error.argmax()
    bound = 2e-5 * expected.abs().max()
    assert error.max() <= bound, f"worst element {worst} off by {error.max():.2e}, allowed {bound:.2e}"


@pytest.mark.parametrize("prompt", [text(50), mixed()], ids=["text", "mixed"])
@pytest.mark.parametrize("cuts", [[21, 44, 100], [3, 4, 22, 23, 24, 39, 44, 100], [25, 100]])
def test_prefill_in_chunks_equals_one_pass(model: Gemma, prompt: Prompt, cuts: list[int]) -> None:
    total = len(prompt.ids)
    assert_same(in_chunks(model, prompt, [min(cut, total) for cut in cuts]), model.logits_of(prompt))


def test_cached_decoding_equals_one_pass(model: Gemma) -> None:
    prompt = mixed()
    token_by_token = [5, 21, *range(22, 41), 44, *range(45, 61)]
    assert_same(in_chunks(model, prompt, token_by_token), model.logits_of(prompt))


def test_a_batch_of_unequal_sequences_equals_each_alone(model: Gemma) -> None:
    prompts = [text(50, 3), mixed(), text(1, 4), text(17, 5)]
    caches = [SequenceCache.for_model(model.config) for _ in prompts]
    spans = [Span(len(p.ids), cache, p.blocks()) for p, cache in zip(prompts, caches, strict=True)]
    together = model.logits(model(torch.cat([model.embed(p) for p in prompts]), spans))
    assert_same(together, torch.cat([model.logits_of(p) for p in prompts]))
    # and the next token of all of them at once
    following = [torch.cat((p.ids, torch.tensor([9]))) for p in prompts]
    step = model(model.embed(Prompt(torch.tensor([9] * 4))), [Span(1, cache) for cache in caches])
    alone = [model.logits_of(Prompt(ids, p.soft))[-1] for ids, p in zip(following, prompts, strict=True)]
    assert_same(model.logits(step), torch.stack(alone))


@pytest.mark.parametrize(("length", "back"), [(60, 45), (200, 190), (12, 1), (60, 0)])
def test_rewinding_and_going_on_equals_starting_fresh(model: Gemma, length: int, back: int) -> None:
    first, second = text(length, 6), text(80, 7)
    cache = SequenceCache.for_model(model.config, slack=64)
    in_chunks(model, first, [*range(7, length, 7), length], cache)
    assert cache.rewind(back)
    other = Prompt(torch.cat((first.ids[:back], second.ids)))
    assert_same(in_chunks(model, other, [back + 5, back + 6, back + 80], cache), model.logits_of(other)[back:])


def test_rewinding_too_far_is_refused_and_changes_nothing(model: Gemma) -> None:
    prompt = text(400, 8)
    cache = SequenceCache.for_model(model.config, slack=16)
    in_chunks(model, prompt, list(range(1, 391)), cache)
    assert not cache.rewind(100)
    assert not cache.rewind(391)
    assert cache.length == 390
    assert_same(in_chunks(model, prompt, [400], cache), model.logits_of(prompt)[390:])


def test_pictures_look_both_ways_on_sliding_layers_only() -> None:
    """Changing a later patch changes an earlier one's output, unless all layers are full."""
    for layers, expected in ((("sliding",) * 2, True), (("full",) * 2, False)):
        model = random_model(tiny_config(layers=layers))
        prompt = mixed()
        before = model.logits_of(prompt)[40]
        patches = prompt.soft[2].patches
        assert patches is not None
        patches[3] = 1 - patches[3]
        assert bool((model.logits_of(prompt)[40] - before).abs().max() > 1e-4) is expected


def test_sound_is_causal(model: Gemma) -> None:
    prompt = mixed()
    before = model.logits_of(prompt)
    frames = prompt.soft[1].frames
    assert frames is not None
    frames[5] = -frames[4]
    after = model.logits_of(prompt)
    assert_same(after[:35], before[:35])
    assert (after[35] - before[35]).abs().max() > 1e-2


def test_the_head_shares_the_embedding_table(model: Gemma) -> None:
    assert model.head.weight is model.embed_tokens.weight


def test_a_path_takes_only_matrices_that_fit() -> None:
    """tinygemm reads 128 inputs at once; its own layout is not for the head, whose tiles are the table's too."""
    layer = "layers.0.mlp."
    names = ("embed_tokens.weight", f"{layer}up_proj.weight", f"{layer}down_proj.weight")
    model = Gemma(tiny_config(hidden_size=160, intermediate_size=256), dict.fromkeys(names, "int4"))
    taken = Path("tinygemm", PLAIN.product, lambda tiles: (tiles, tiles), multiple=GPU_INT4.multiple)
    model.use(replace(PLAIN_OPS, paths={"int4": taken, "int8": PLAIN}))
    mlp = model.layers[0].mlp
    assert [module.path for module in (model.head, mlp.up_proj, mlp.down_proj)] == [PLAIN, PLAIN, taken]
