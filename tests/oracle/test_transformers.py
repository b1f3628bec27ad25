"""A checkpoint written by transformers, loaded by us: the same logits in float32.

For pictures transformers gets the specified mask. Its plain ``forward`` of release 5.23 builds another one from
``mm_token_type_ids``: pictures are bidirectional on full layers too, and on sliding layers the window does not
clip them ((causal and window) or same block). Its own ``create_masks_for_generate``, which ``generate`` uses, and
llama.cpp build the specified one; ``test_the_mask_is_the_one_transformers_generates_with`` holds ours to it.
"""

import json

import pytest
import torch

from jupyter_gemma.model import checkpoint
from jupyter_gemma.model.config import config_from_hf

TOLERANCE = 1e-5
CASES = ["text", "audio", "image", "two images", "image and audio", "video"]


@pytest.fixture(scope="module")
def ours(tiny):
    return checkpoint.load(tiny.path, quantization="none", device="cpu").model


def allowed(case, window):
    """bool [T, T] by layer kind, [query, key]: the specified masks. The window looks back only."""
    position = torch.arange(len(case.ids))
    distance = position[:, None] - position[None, :]
    same_picture = (case.blocks[:, None] == case.blocks[None, :]) & (case.blocks >= 0)
    return {
        "full_attention": distance >= 0,
        "sliding_attention": ((distance >= 0) | same_picture) & (distance < window),
    }


def transformers_logits(model, case):
    """float32 [T, vocab]."""
    lowest = torch.finfo(torch.float32).min
    masks = allowed(case, model.config.text_config.sliding_window)
    inputs = {
        "input_ids": case.ids[None],
        "attention_mask": {kind: torch.where(mask, 0.0, lowest)[None, None] for kind, mask in masks.items()},
        **picture_inputs(case.pictures, model.config.video_token_id),
        **clip_inputs(case.clips),
    }
    with torch.no_grad():
        return model(**inputs).logits[0]


def picture_inputs(pictures, video_token):
    """Pictures of unequal size are padded, as the processors of transformers do."""
    if not pictures:
        return {}
    pad = torch.nn.utils.rnn.pad_sequence
    patches = pad([picture.patches for picture in pictures], batch_first=True)
    places = pad([picture.positions for picture in pictures], batch_first=True, padding_value=-1)
    if pictures[0].placeholder != video_token:
        return {"pixel_values": patches, "image_position_ids": places}
    count = torch.tensor([len(pictures)])
    return {"pixel_values_videos": patches, "video_position_ids": places, "num_frames_per_video": count}


def clip_inputs(clips):
    if not clips:
        return {}
    frames = torch.stack([clip.frames for clip in clips])
    return {"input_features": frames, "input_features_mask": torch.ones(frames.shape[:2], dtype=torch.bool)}


@pytest.mark.parametrize("name", CASES)
def test_logits(name, cases, tiny, ours, assert_close):
    case = cases[name]
    theirs = transformers_logits(tiny.model, case)
    assert theirs.std() > 1, "the oracle says nothing: its logits are flat"
    with torch.no_grad():
        assert_close(ours.logits_of(case.prompt), theirs, TOLERANCE, name)


@pytest.mark.parametrize("name", ["text", "image", "two images", "image and audio", "video"])
def test_the_mask_is_the_one_transformers_generates_with(name, cases, tiny):
    case, length = cases[name], len(cases[name].ids)
    token_types = (case.blocks >= 0).long()[None]
    theirs = tiny.model.create_masks_for_generate(
        tiny.model.config,
        torch.zeros(1, length, 1),
        None,
        None,
        torch.arange(length)[None],
        mm_token_type_ids=token_types,
    )
    for kind, mask in allowed(case, tiny.model.config.text_config.sliding_window).items():
        assert torch.equal(theirs[kind][0, 0] == 0, mask), kind


def test_a_picture_longer_than_the_window_is_in_the_cases(cases, tiny):
    window = tiny.model.config.text_config.sliding_window
    assert len(cases["image"].pictures[0]) > window
    assert all(len(case.ids) > window for case in cases.values())


def test_the_checkpoint_is_sharded_and_has_the_names_of_the_12b(tiny):
    index = json.loads((tiny.path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert "model.vision_embedder.patch_dense.weight" in index
    assert "model.embed_vision.embedding_projection.weight" in index
    assert "model.language_model.layers.4.self_attn.v_proj.weight" in index
    assert "model.language_model.layers.5.self_attn.v_proj.weight" not in index


def test_both_spellings_of_the_full_layers_shape_mean_the_same(tiny):
    """The 12B's config.json has global_head_dim; transformers 5.23 saves per_layer_config in its place."""
    saved = json.loads((tiny.path / "config.json").read_text())
    assert "global_head_dim" not in saved["text_config"]
    published = json.loads(json.dumps(saved))
    del published["text_config"]["per_layer_config"]
    published["text_config"] |= {"global_head_dim": 32, "num_global_key_value_heads": 1}
    assert config_from_hf(saved) == config_from_hf(published)
