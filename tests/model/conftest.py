"""Tiny random checkpoints in every form the loader reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from jupyter_gemma.model.config import config_from_hf
from jupyter_gemma.model.weights import weight_shapes

Weights = dict[str, Tensor]
Types = Callable[[str], gguf.GGMLQuantizationType]

GEMMA4: dict[str, Any] = {
    "model_type": "gemma4_unified",
    "architectures": ["Gemma4UnifiedForConditionalGeneration"],
    "image_token_id": 10,
    "boi_token_id": 11,
    "eoi_token_id": 12,
    "audio_token_id": 13,
    "boa_token_id": 14,
    "eoa_token_index": 15,
    "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "sliding_window": 8,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "final_logit_softcapping": 30.0,
        "use_bidirectional_attention": "vision",
        "bos_token_id": 2,
        "eos_token_id": [1, 16],
        "pad_token_id": 0,
    },
    "vision_config": {
        "patch_size": 2,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 64,
        "mm_posemb_size": 6,
        "rms_norm_eps": 1e-6,
    },
    "audio_config": {"audio_embed_dim": 32, "rms_norm_eps": 1e-6},
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    "sliding_window": 8,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "bos_token_id": 2,
    "eos_token_id": [1, 16],
    "pad_token_id": 0,
}


def random_weights(raw: Mapping[str, Any], seed: int = 0) -> Weights:
    """bfloat16 values by our names, as an HF file of this model would hold them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (0.1 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in weight_shapes(config_from_hf(raw)).items()
    }


def hf_name(name: str, model_type: str) -> str:
    if model_type == "gemma3_text" or name.startswith(("vision_embedder", "embed_vision", "embed_audio")):
        return f"model.{name}"
    return f"model.language_model.{name}"


def write_hf(folder: Path, raw: Mapping[str, Any], weights: Weights, shards: int = 1) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    named = {hf_name(name, raw["model_type"]): value for name, value in weights.items()}
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return folder
    index = {}
    for number in range(shards):
        part = dict(list(named.items())[number::shards])
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file(part, folder / file)
        index.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gemma4_raw() -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(GEMMA4))
    return copy


@pytest.fixture
def gemma3_raw() -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(GEMMA3))
    return copy


@pytest.fixture
def make_weights() -> Callable[..., Weights]:
    return random_weights


@pytest.fixture
def make_hf() -> Callable[..., Path]:
    return write_hf


@pytest.fixture
def gemma4_folder(tmp_path: Path, gemma4_raw: dict[str, Any]) -> Path:
    return write_hf(tmp_path / "gemma4", gemma4_raw, random_weights(gemma4_raw))


VOCABULARY = [
    *("<pad>", "<eos>", "<bos>", "<unk>"),
    *(f"word{number}" for number in range(4, 10)),
    *("<|image|>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>", "<turn|>"),
    *(f"word{number}" for number in range(17, 128)),
]


def _add(writer: gguf.GGUFWriter, name: str, value: Tensor, type_: gguf.GGMLQuantizationType) -> None:
    array = value.float().numpy()
    if type_ == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, np.ascontiguousarray(array))
    else:
        writer.add_tensor(name, gguf.quants.quantize(array, type_), raw_dtype=type_)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "layer_scalar": "layer_output_scale.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _gguf_text_name(name: str) -> str:
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, index, rest = name.split(".", 2)
    for ours, theirs in LAYER_NAMES.items():
        if rest.startswith(ours):
            return f"blk.{index}.{theirs}{rest.removeprefix(ours)}"
    raise KeyError(name)


def _writer(path: Path, architecture: str, raw: Mapping[str, Any]) -> gguf.GGUFWriter:
    """With the keys that both architectures share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(len(raw["layer_types"]))
    writer.add_context_length(raw["max_position_embeddings"])
    writer.add_embedding_length(raw["hidden_size"])
    writer.add_feed_forward_length(raw["intermediate_size"])
    writer.add_head_count(raw["num_attention_heads"])
    writer.add_layer_norm_rms_eps(raw["rms_norm_eps"])
    writer.add_sliding_window(raw["sliding_window"])
    writer.add_rope_freq_base(1e6)
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([1] * len(VOCABULARY))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    return writer


def write_gemma4_gguf(path: Path, raw: Mapping[str, Any], weights: Weights, types: Types) -> Path:
    text = raw["text_config"]
    writer = _writer(path, "gemma4", text)
    sliding = [kind == "sliding_attention" for kind in text["layer_types"]]
    writer.add_head_count_kv(
        [text["num_key_value_heads"] if s else text["num_global_key_value_heads"] for s in sliding]
    )
    writer.add_sliding_window_pattern(sliding)
    writer.add_key_length(text["global_head_dim"])
    writer.add_value_length(text["global_head_dim"])
    writer.add_key_length_swa(text["head_dim"])
    writer.add_value_length_swa(text["head_dim"])
    writer.add_rope_freq_base_swa(1e4)
    writer.add_final_logit_softcapping(text["final_logit_softcapping"])
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)
    half = text["global_head_dim"] // 2
    turning = int(half * text["rope_parameters"]["full_attention"]["partial_rotary_factor"])
    writer.add_tensor("rope_freqs.weight", np.array([1.0] * turning + [1e30] * (half - turning), np.float32))
    for name, value in weights.items():
        if name.startswith(("layers.", "embed_tokens", "norm")):
            _add(writer, _gguf_text_name(name), value, types(name))
    _finish(writer)
    return path


def _channel_first(value: Tensor, patch: int) -> Tensor:
    lead = value.shape[:-1]
    return value.reshape(*lead, patch, patch, 3).movedim(-1, -3).reshape(*lead, -1).contiguous()


def write_mmproj(path: Path, raw: Mapping[str, Any], weights: Weights) -> Path:
    vision = raw["vision_config"]
    patch = vision["patch_size"] * vision["pooling_kernel_size"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string("clip.vision.projector_type", "gemma4uv")
    writer.add_string("clip.audio.projector_type", "gemma4ua")
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    plain = {
        "v.patch_embd.bias": "vision_embedder.patch_dense.bias",
        "v.patch_norm.2.weight": "vision_embedder.patch_ln2.weight",
        "v.patch_norm.2.bias": "vision_embedder.patch_ln2.bias",
        "v.patch_norm.3.weight": "vision_embedder.pos_norm.weight",
        "v.patch_norm.3.bias": "vision_embedder.pos_norm.bias",
        "mm.input_projection.weight": "embed_vision.embedding_projection.weight",
        "mm.a.input_projection.weight": "embed_audio.embedding_projection.weight",
    }
    turned = {
        "v.patch_embd.weight": "vision_embedder.patch_dense.weight",
        "v.patch_norm.1.weight": "vision_embedder.patch_ln1.weight",
        "v.patch_norm.1.bias": "vision_embedder.patch_ln1.bias",
    }
    tensors = {key: weights[name] for key, name in plain.items()}
    tensors.update({key: _channel_first(weights[name], patch) for key, name in turned.items()})
    tensors["v.position_embd.weight"] = weights["vision_embedder.pos_embedding"].transpose(0, 1)
    for key, value in tensors.items():
        _add(writer, key, value, gguf.GGMLQuantizationType.F32)
    _finish(writer)
    return path


def write_gemma3_gguf(path: Path, raw: Mapping[str, Any], weights: Weights, types: Types) -> Path:
    writer = _writer(path, "gemma3", raw)
    writer.add_head_count_kv(raw["num_key_value_heads"])
    writer.add_key_length(raw["head_dim"])
    writer.add_value_length(raw["head_dim"])
    for name, value in weights.items():
        stored = value.float() + 1 if name.endswith("norm.weight") else value
        _add(writer, _gguf_text_name(name), stored, types(name))
    _finish(writer)
    return path


@pytest.fixture
def make_gemma4_gguf() -> Callable[..., Path]:
    return write_gemma4_gguf


@pytest.fixture
def make_gemma3_gguf() -> Callable[..., Path]:
    return write_gemma3_gguf


@pytest.fixture
def make_mmproj() -> Callable[..., Path]:
    return write_mmproj
