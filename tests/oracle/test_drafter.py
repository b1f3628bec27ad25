"""A drafter written by transformers, loaded by us: the same drafts, with the same scores, for the same target.

transformers 5.23 cannot build a drafter: ``kv_sharing_modes`` looks in the drafter itself for the layers that it shares
keys and values with, and lets no layer of the target store them. Here both are told what they are.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from jupyter_gemma.engine import speculate
from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model import checkpoint
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.decoder import Prompt, Span
from jupyter_gemma.model.drafter import load_drafter
from jupyter_gemma.model.ops import choose_ops

TOLERANCE = 1e-5
DRAFT = 5


@pytest.fixture(scope="module")
def _shared(tiny):
    """The target's last layer of each kind stores keys and values, and a drafter's layers all use them."""
    from transformers import Gemma4UnifiedTextConfig

    of_models = Gemma4UnifiedTextConfig.kv_sharing_modes.fget

    def modes(config):
        layers = config.num_hidden_layers
        return ["reuse"] * layers if config.num_kv_shared_layers == layers else of_models(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gemma4UnifiedTextConfig, "kv_sharing_modes", property(modes))
        last = {layer.self_attn.layer_type: layer.self_attn for layer in tiny.model.model.language_model.layers}
        for attention in last.values():
            patch.setattr(attention, "store_full_length_kv", True)
        yield


@pytest.fixture(scope="module")
def theirs(tiny, text_config, random_tensor, _shared):
    """transformers' drafter for the tiny target; the published ones have the same order of layers."""
    from transformers import Gemma4UnifiedAssistantConfig, Gemma4UnifiedAssistantForCausalLM

    layers = ["sliding_attention"] * 3 + ["full_attention"]
    text = text_config | {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4, "layer_types": layers}
    text["model_type"] = "gemma4_unified_text"
    config = Gemma4UnifiedAssistantConfig(
        text_config=text, backbone_hidden_size=tiny.model.config.text_config.hidden_size
    )
    config._attn_implementation = "eager"
    model = Gemma4UnifiedAssistantForCausalLM(config).eval()
    random = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name != "lm_head.weight":  # tied to embed_tokens
                value.copy_(random_tensor(name, value.shape, random))
    model.generation_config.num_assistant_tokens = DRAFT
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("drafter")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def target(tiny):
    return checkpoint.load(tiny.path, quantization="none", device="cpu").model


def their_draft(tiny, drafter, ids):
    """Tokens [DRAFT] and their scores [DRAFT, vocab] after ``ids``, whose last token the target has not seen."""
    from transformers.generation.candidate_generator import SinglePositionMultiTokenCandidateGenerator

    with torch.no_grad():
        seen = tiny.model(ids[None, :-1], output_hidden_states=True, return_shared_kv_states=True, use_cache=False)
        generator = SinglePositionMultiTokenCandidateGenerator(
            drafter, tiny.model.get_input_embeddings(), SimpleNamespace(max_length=10**6)
        )
        found, scores = generator.get_candidates(ids[None], {}, seen, is_first_iteration=False, n_last_matches=0)
    return found[0, len(ids) :].tolist(), scores[0]


def our_draft(target, drafter, ids):
    cache = SequenceCache.for_model(target.config)
    with torch.no_grad():
        rows = target.embed(Prompt(ids[:-1]))
        hidden = target(rows, [Span(len(rows), cache)])[-1]
        tokens = drafter.draft(target, int(ids[-1]), hidden, cache, DRAFT)
        assert cache.length == len(ids) - 1
        scores = []
        for last in [int(ids[-1]), *tokens[:-1]]:
            row = torch.cat((target.embed(Prompt(torch.tensor([last])))[0], hidden))
            states, found = drafter(row[None], [cache])
            hidden = states[0]
            scores.append(found[0])
    return tokens, torch.stack(scores)


@pytest.mark.parametrize("length", [3, 24, 25, 26, 27, 90])
def test_drafts(length, cases, tiny, theirs, folder, target, assert_close):
    """Around the window of 24 and beyond."""
    ids = cases["text"].ids[:length]
    expected, their_scores = their_draft(tiny, theirs, ids)
    tokens, our_scores = our_draft(target, load_drafter(folder, target), ids)
    assert their_scores.std() > 0.5, "the oracle says nothing: its scores are flat"
    assert_close(our_scores, their_scores, TOLERANCE, f"{length} tokens")
    assert tokens == expected


def test_quantised_by_the_kernels_it_still_drafts(cases, target, folder):
    drafter = load_drafter(folder, target, "int8")
    drafter.use(choose_ops())
    exact, scores = our_draft(target, load_drafter(folder, target), cases["text"].ids)
    _, rounded = our_draft(target, drafter, cases["text"].ids)
    assert (rounded[0] - scores[0]).abs().max() < 0.1 * scores[0].abs().max()
    assert len(exact) == DRAFT


@pytest.mark.parametrize("choice", ["auto", "drafter"])
def test_it_is_used_where_it_is_there(choice, target, folder, monkeypatch):
    monkeypatch.setattr(speculate, "measure_rows", lambda model: (1.0,) * len(speculate.ROWS))
    assert speculate.plan_speculation(choice, target, folder).drafter is not None
    assert speculate.plan_speculation("lookup", target, folder).drafter is None


# ------------------------------------------------------------------------------------------------ refusals


def rewritten(folder, tmp_path, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    return tmp_path


def test_it_is_no_model(folder):
    with pytest.raises(BadCheckpoint, match="is a drafter"):
        checkpoint.load(folder, device="cpu")


def test_a_model_is_no_drafter(tiny, target):
    with pytest.raises(BadCheckpoint, match="not a drafter"):
        load_drafter(tiny.path, target)


def test_the_drafter_of_another_model_is_refused(folder, target, tmp_path):
    text = json.loads((folder / "config.json").read_text())["text_config"] | {"num_key_value_heads": 1}
    with pytest.raises(BadCheckpoint, match="another model"):
        load_drafter(rewritten(folder, tmp_path, text_config=text), target)


def test_centroids_are_refused(folder, target, tmp_path):
    with pytest.raises(BadCheckpoint, match="centroids"):
        load_drafter(rewritten(folder, tmp_path, use_ordered_embeddings=True), target)
