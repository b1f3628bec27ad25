"""The sampler against a plain reference, and the frequencies of its draws."""

import json
import math

import pytest
import torch

from jupyter_gemma.engine.sampling import Sampler, SamplingDefaults, load_defaults
from jupyter_gemma.errors import BadCheckpoint, BadOption, ModelError
from jupyter_gemma.types import Sampling

PLAIN = SamplingDefaults(temperature=1.0, top_k=0, top_p=1.0)
LOGITS = torch.tensor([1.0, 3.0, -2.0, 2.5, 0.0, 2.9, -1.0, 1.5])


def reference(logits, history=(), *, suppress=(), penalty=1.0, top_k=0, temperature=1.0, top_p=1.0, min_p=0.0):
    """Chances by token, written plainly: one list, one filter after the other."""
    scores = logits.tolist()
    for token in suppress:
        scores[token] = -math.inf
    for token in set(history):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    ranked = sorted(range(len(scores)), key=lambda token: -scores[token])[: top_k or None]
    weights = {token: math.exp(scores[token] / temperature) for token in ranked}
    whole = sum(weights.values())
    kept, total = {}, 0.0
    for token in ranked:
        if kept and (total >= top_p * whole or weights[token] < min_p * weights[ranked[0]]):
            break
        kept[token] = weights[token]
        total += weights[token]
    return {token: weight / total for token, weight in kept.items() if weight}


def frequencies(sampler, logits, history=(), draws=4000):
    counts = {}
    for _ in range(draws):
        token = sampler.choose(logits, history)
        counts[token] = counts.get(token, 0) + 1
    return counts


OPTIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_k": 1},
    {"top_p": 0.8},
    {"top_p": 0.0},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"penalty": 2.0},
    {"penalty": 0.5},
    {"suppress": (1, 5)},
    {"suppress": (1,), "penalty": 1.5, "top_k": 5, "temperature": 1.3, "top_p": 0.9, "min_p": 0.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_draws_have_the_reference_frequencies(options):
    history = [1, 2, 1, 7] if "penalty" in options else []
    expected = reference(LOGITS, history, **options)
    given = {key: value for key, value in options.items() if key in ("temperature", "top_k", "top_p", "min_p")}
    defaults = SamplingDefaults(1.0, 0, 1.0, suppress=options.get("suppress", ()))
    sampler = Sampler(Sampling(**given, repetition_penalty=options.get("penalty"), seed=11), defaults, len(LOGITS))
    draws = 4000
    counts = frequencies(sampler, LOGITS, history, draws)
    assert set(counts) <= set(expected), "a token that a filter removes was drawn"
    deviation = sum(
        (counts.get(token, 0) - draws * chance) ** 2 / (draws * chance) for token, chance in expected.items()
    )
    freedom = len(expected) - 1
    # Chi-square: mean freedom, variance 2 * freedom; five deviations are far beyond any honest draw.
    assert deviation <= freedom + 5 * math.sqrt(2 * freedom) + 1e-9


def test_greedy_takes_the_best_that_is_allowed():
    sampler = Sampler(Sampling(temperature=0), SamplingDefaults(suppress=(1, 100)), len(LOGITS))
    assert sampler.choose(LOGITS, []) == 5
    penalised = Sampler(Sampling(temperature=0, repetition_penalty=2.0), SamplingDefaults(suppress=(1,)), len(LOGITS))
    assert penalised.choose(LOGITS, [5]) == 3


def test_negative_scores_are_penalised_downwards():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0), PLAIN, 3)
    assert sampler.choose(torch.tensor([-1.0, -1.5, -9.0]), [0]) == 1


def test_logits_stay_as_they_are():
    logits = LOGITS.clone()
    sampler = Sampler(Sampling(repetition_penalty=3.0, seed=1), SamplingDefaults(suppress=(0,)), len(LOGITS))
    sampler.choose(logits, [1, 2])
    assert torch.equal(logits, LOGITS)


def test_a_seed_repeats_an_answer():
    def draw(sampler):
        return [sampler.choose(LOGITS, []) for _ in range(50)]

    first = Sampler(Sampling(), PLAIN, len(LOGITS))
    tokens = draw(first)
    torch.manual_seed(0)  # the draws have a generator of their own
    assert draw(Sampler(Sampling(seed=first.seed), PLAIN, len(LOGITS))) == tokens
    assert Sampler(Sampling(), PLAIN, len(LOGITS)).seed != first.seed
    assert draw(Sampler(Sampling(seed=first.seed + 1), PLAIN, len(LOGITS))) != tokens


def test_sharp_scores_do_not_overflow():
    sampler = Sampler(Sampling(temperature=0.001, seed=0), PLAIN, 3)
    assert sampler.choose(torch.tensor([3e38, -3e38, 1.0]), []) == 0


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [[1.0, math.nan], [math.inf, 1.0], [-math.inf, -math.inf]])
def test_scores_that_are_no_numbers(temperature, bad):
    sampler = Sampler(Sampling(temperature=temperature), PLAIN, 2)
    with pytest.raises(ModelError, match="no token can be chosen"):
        sampler.choose(torch.tensor(bad), [])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 2**63),
        ("max_tokens", 0),
    ],
)
def test_options_out_of_range(option, value):
    with pytest.raises(BadOption, match=rf"{option} cannot be .* from .* to "):
        Sampler(Sampling(**{option: value}), PLAIN, 8)


def test_an_empty_stop_string():
    with pytest.raises(BadOption, match="stop string is empty"):
        Sampler(Sampling(stop=("a", "")), PLAIN, 8)


# ------------------------------------------------------------------------------------------------ defaults


def write(folder, **values):
    (folder / "generation_config.json").write_text(json.dumps(values), "utf-8")
    return load_defaults(folder)


def test_defaults_of_gemma4(tmp_path):
    found = write(
        tmp_path,
        do_sample=True,
        temperature=1.0,
        top_k=64,
        top_p=0.95,
        eos_token_id=[1, 106, 50],
        suppress_tokens=[258883, 258882],
    )
    assert found == SamplingDefaults(1.0, 64, 0.95, suppress=(258883, 258882), eos=(1, 106, 50))


def test_no_sampling_means_greedy(tmp_path):
    assert write(tmp_path, do_sample=False, temperature=0.7, eos_token_id=1) == SamplingDefaults(0.0, 0, 1.0, eos=(1,))


def test_without_a_file_gemmas_own(tmp_path):
    assert load_defaults(tmp_path) == SamplingDefaults(1.0, 64, 0.95)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert load_defaults(tmp_path / "model.gguf") == SamplingDefaults(1.0, 64, 0.95)


def test_a_broken_file(tmp_path):
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"generation_config\.json is not JSON"):
        load_defaults(tmp_path)


def test_a_request_wins_over_the_defaults():
    sampler = Sampler(Sampling(top_k=2, min_p=0.5), SamplingDefaults(0.7, 64, 0.9, 0.1, 1.2), 1000)
    assert (sampler.temperature, sampler.top_k, sampler.top_p, sampler.min_p, sampler.penalty) == (
        0.7,
        2,
        0.9,
        0.5,
        1.2,
    )
