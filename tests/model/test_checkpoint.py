"""Opening checkpoints, what becomes of each weight, and loading as a whole."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint, BadOption, OutOfMemory
from jupyter_gemma.model.checkpoint import LoadedModel, load, open_source, plan_kinds
from jupyter_gemma.model.config import config_from_hf, config_from_json, config_to_json
from jupyter_gemma.model.decoder import Prompt, SoftTokens
from jupyter_gemma.model.quant import dequantize, quantize
from jupyter_gemma.model.weights import weight_shapes
from jupyter_gemma.types import Progress

Make = Callable[..., Any]


def prompt() -> Prompt:
    """Text with a picture and a clip in it, longer than the window."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(20, 120, (30,), generator=generator)
    picture = SoftTokens(
        offset=4,
        patches=torch.rand(6, 48, generator=generator),
        positions=torch.tensor([(x, y) for y in range(2) for x in range(3)]),
    )
    clip = SoftTokens(offset=15, frames=torch.rand(3, 32, generator=generator) - 0.5)
    return Prompt(ids, (picture, clip))


def logits(loaded: LoadedModel) -> Tensor:
    asked = prompt()
    if loaded.config.vision is None:
        asked = Prompt(asked.ids)
    with torch.inference_mode():
        return loaded.model.logits_of(asked)


def test_every_weight_arrives(gemma4_folder: Path, gemma4_raw: dict[str, Any], make_weights: Make) -> None:
    loaded = load(gemma4_folder, device="cpu")
    state = loaded.model.state_dict()
    for name, value in make_weights(gemma4_raw).items():
        assert torch.equal(state.pop(name), value.float()), name
    assert set(state) == {"head.weight"}
    assert loaded.model.head.weight is loaded.model.embed_tokens.weight
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.resident_bytes == sum(value.numel() * 4 for value in make_weights(gemma4_raw).values())


def test_gemma3_norms_get_their_one(
    tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_hf: Make
) -> None:
    weights = make_weights(gemma3_raw)
    state = load(make_hf(tmp_path / "g3", gemma3_raw, weights), device="cpu").model.state_dict()
    for name in ("norm.weight", "layers.0.self_attn.q_norm.weight", "layers.3.post_attention_layernorm.weight"):
        assert torch.equal(state[name], weights[name].float() + 1)
    assert torch.equal(state["layers.0.mlp.up_proj.weight"], weights["layers.0.mlp.up_proj.weight"].float())


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_shards_and_a_second_load_change_nothing(
    tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_hf: Make, quantization: Any
) -> None:
    weights = make_weights(gemma4_raw)
    whole = logits(load(make_hf(tmp_path / "one", gemma4_raw, weights), quantization=quantization, device="cpu"))
    folder = make_hf(tmp_path / "many", gemma4_raw, weights, shards=3)
    for _ in range(2):
        assert torch.equal(logits(load(folder, quantization=quantization, device="cpu")), whole)


def test_quantised_weights_are_those_of_quant(
    gemma4_folder: Path, gemma4_raw: dict[str, Any], make_weights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_gemma.model.weights._BLOCK_VALUES", 700)  # several blocks for each weight
    loaded = load(gemma4_folder, quantization="int4", device="cpu")
    state, weights = loaded.model.state_dict(), make_weights(gemma4_raw)
    for name, kind in loaded.kinds.items():
        if kind != "float":
            whole = quantize(weights[name], kind)
            assert torch.equal(state[f"{name.removesuffix('weight')}tiles"], whole.tiles), name
            assert dequantize(whole).shape == weights[name].shape


def test_plan_of_each_choice(gemma4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(gemma4_folder)
    linear, table, patches = (
        "layers.0.self_attn.q_proj.weight",
        "embed_tokens.weight",
        "vision_embedder.patch_dense.weight",
    )
    norm, projection = "layers.0.self_attn.q_norm.weight", "embed_vision.embedding_projection.weight"

    def plan(quantization: Any) -> tuple[str, str]:
        kinds = plan_kinds(source, quantization)
        assert {kinds[name] for name in (patches, norm, projection, "layers.0.layer_scalar")} == {"float"}
        return kinds[linear], kinds[table]

    assert plan("none") == ("float", "float")
    assert plan("int8") == ("int8", "int8")
    assert plan("int4") == ("int4", "int8")
    assert plan("auto") == ("float", "float")
    monkeypatch.setattr("jupyter_gemma.model.checkpoint.LARGE", 1)
    assert plan("auto") == ("int4", "int8")


def test_shapes_that_are_no_whole_tiles_stay_float(
    tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_hf: Make
) -> None:
    gemma4_raw["text_config"]["intermediate_size"] = 80
    kinds = plan_kinds(open_source(make_hf(tmp_path / "odd", gemma4_raw, make_weights(gemma4_raw))), "int4")
    assert kinds["layers.0.mlp.down_proj.weight"] == "float"
    assert kinds["layers.0.mlp.up_proj.weight"] == "int4"


def test_sizes_of_full_layers_as_transformers_writes_them(gemma4_raw: dict[str, Any]) -> None:
    expected = config_from_hf(gemma4_raw)
    text = gemma4_raw["text_config"]
    text["per_layer_config"] = {
        "2": {"head_dim": text.pop("global_head_dim"), "num_key_value_heads": text.pop("num_global_key_value_heads")}
    }
    assert config_from_hf(gemma4_raw) == expected


def test_configuration_survives_json(gemma4_raw: dict[str, Any], gemma3_raw: dict[str, Any]) -> None:
    for raw in (gemma4_raw, gemma3_raw):
        config = config_from_hf(raw)
        assert config_from_json(config_to_json(config)) == config


def test_progress_ends_at_the_whole(gemma4_folder: Path) -> None:
    seen: list[Progress] = []
    loaded = load(gemma4_folder, quantization="int4", device="cpu", progress=seen.append)
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert seen[-1].done == seen[-1].total == loaded.resident_bytes


def test_digest_follows_the_files(gemma4_folder: Path) -> None:
    before = open_source(gemma4_folder).digest()
    assert open_source(gemma4_folder).digest() == before
    (gemma4_folder / "config.json").write_text((gemma4_folder / "config.json").read_text() + "\n")
    assert open_source(gemma4_folder).digest() != before


def edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_missing_tensor_is_named(gemma4_folder: Path) -> None:
    edit(gemma4_folder, lambda tensors: tensors.__delitem__("model.language_model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadCheckpoint, match=r"lacks the tensor layers\.1\.mlp\.up_proj\.weight of shape \[96, 64\]"):
        open_source(gemma4_folder)


def test_misshapen_tensor_is_named_with_both_shapes(gemma4_folder: Path) -> None:
    edit(gemma4_folder, lambda tensors: tensors.update({"model.language_model.norm.weight": torch.zeros(65)}))
    with pytest.raises(BadCheckpoint, match=r"norm\.weight in .* has shape \[65\], not \[64\]"):
        open_source(gemma4_folder)


def test_unknown_tensor_is_named(gemma4_folder: Path) -> None:
    edit(gemma4_folder, lambda tensors: tensors.update({"model.language_model.layers.0.extra": torch.zeros(2)}))
    with pytest.raises(BadCheckpoint, match=r"layers\.0\.extra"):
        open_source(gemma4_folder)


def test_a_copy_of_the_tied_table_is_harmless_and_an_own_head_is_not(
    gemma4_folder: Path, gemma4_raw: dict[str, Any]
) -> None:
    edit(gemma4_folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(128, 64)}))
    assert "lm_head.weight" not in open_source(gemma4_folder).names()
    gemma4_raw["tie_word_embeddings"] = False
    (gemma4_folder / "config.json").write_text(json.dumps(gemma4_raw))
    with pytest.raises(BadCheckpoint, match=r"lm_head\.weight"):
        open_source(gemma4_folder)


def test_types_that_are_no_floats_are_refused(gemma4_folder: Path) -> None:
    name = "model.language_model.norm.weight"
    edit(gemma4_folder, lambda tensors: tensors.update({name: torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(BadCheckpoint, match=r"norm\.weight .* has the type I8"):
        open_source(gemma4_folder)


@pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(gemma4_folder: Path, kept: float) -> None:
    file = gemma4_folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is not a whole .*Fetch the checkpoint again"):
        open_source(gemma4_folder)


def test_a_foreign_file_is_refused(gemma4_folder: Path) -> None:
    (gemma4_folder / "model.safetensors").write_text("<html>404 Not Found</html>" * 20)
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors is not a whole safetensors file"):
        open_source(gemma4_folder)


def test_a_missing_shard_is_named(
    tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_hf: Make
) -> None:
    folder = make_hf(tmp_path / "many", gemma4_raw, make_weights(gemma4_raw), shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00003\.safetensors is missing"):
        open_source(folder)


def test_an_index_cannot_leave_its_folder(
    tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_hf: Make
) -> None:
    folder = make_hf(tmp_path / "many", gemma4_raw, make_weights(gemma4_raw), shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../gemma4/x.safetensors"}}))
    with pytest.raises(BadCheckpoint, match="outside its folder"):
        open_source(folder)


class Trap:
    """Unpickling it would write a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_is_refused_unread(tmp_path: Path, gemma4_raw: dict[str, Any], name: str) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(gemma4_raw))
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    for path in (folder, folder / name):
        with pytest.raises(BadCheckpoint, match=rf"{name} is a pickle file.*safetensors or GGUF"):
            open_source(path)
    assert not (tmp_path / "mark").exists()


def test_unknown_architecture_is_named(gemma4_folder: Path) -> None:
    (gemma4_folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadCheckpoint, match="'llama'"):
        open_source(gemma4_folder)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "is missing"), ("{", "cannot be read"), ("[]", "no.* JSON object")]
)
def test_a_bad_config_is_named(gemma4_folder: Path, content: str | None, said: str) -> None:
    file = gemma4_folder / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(BadCheckpoint, match=rf"config\.json.* {said}"):
        open_source(gemma4_folder)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="There is no checkpoint at"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(BadCheckpoint, match="holds no model"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadCheckpoint, match="is not a checkpoint"):
        open_source(tmp_path / "notes.txt")


def test_too_little_memory_says_how_much_and_the_ways_out(
    gemma4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jupyter_gemma.model.placement.free_memory", lambda device: {"cpu": 50_000})
    with pytest.raises(
        OutOfMemory, match=r"needs 0\.\d+ GB .*smaller model, quantization int4, .*max_memory="
    ) as caught:
        load(gemma4_folder, device="cpu", cache_dir=tmp_path / "cache", offload_dir=tmp_path / "cache")
    assert "are free" in caught.value.message
    assert not (tmp_path / "cache").exists()


def test_reading_from_disk_needs_a_folder(gemma4_folder: Path) -> None:
    with pytest.raises(OutOfMemory, match="Give cache_dir"):
        load(gemma4_folder, device="cpu", max_memory={"cpu": 1000})


def test_a_device_that_is_not_there_is_refused(gemma4_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadOption, match="no cuda device"):
        load(gemma4_folder, device="cuda")


MEASURE = """
import sys
from pathlib import Path
import torch
from jupyter_gemma.model.checkpoint import load
torch.set_num_threads(1)

def status(key):
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024

Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
cache = Path(sys.argv[2]) if sys.argv[2] else None
loaded = load(Path(sys.argv[1]), quantization="int4", device="cpu", cache_dir=cache)
print(status("VmHWM") - before, loaded.resident_bytes)
"""


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest) -> Any:
    """Six bfloat16 shards of 90 MB, one layer each; the last has the embedding too."""
    hidden, inner, rows = 1792, 6016, 12000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = _large_config(hidden, inner, rows)
        layer = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (hidden, hidden),
            "self_attn.v_proj": (hidden, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            **dict.fromkeys(
                (
                    "input_layernorm",
                    "post_attention_layernorm",
                    "pre_feedforward_layernorm",
                    "post_feedforward_layernorm",
                ),
                (hidden,),
            ),
            "self_attn.q_norm": (128,),
            "self_attn.k_norm": (128,),
        }
        index = {}
        for number in range(6):
            shapes = {f"model.layers.{number}.{part}.weight": shape for part, shape in layer.items()}
            if number == 5:
                shapes = {**shapes, "model.norm.weight": (hidden,), "model.embed_tokens.weight": (rows, hidden)}
            file = f"model-{number}.safetensors"
            save_file({key: torch.ones(shape, dtype=torch.bfloat16) for key, shape in shapes.items()}, folder / file)
            index.update(dict.fromkeys(shapes, file))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (folder / "config.json").write_text(json.dumps(raw))
        yield folder


def _large_config(hidden: int, inner: int, rows: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": 14,
        "num_key_value_heads": 14,
        "head_dim": 128,
        "query_pre_attn_scalar": 128,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "sliding_window": 512,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("cached", [False, True])
def test_peak_memory_is_packed_size_and_one_shard(sharded: Path, tmp_path: Path, cached: bool) -> None:
    cache = str(tmp_path / "cache") if cached else ""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(sharded), cache], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    peak, packed = map(int, run.stdout.split())
    shard = max(file.stat().st_size for file in sharded.glob("*.safetensors"))
    checkpoint = sum(file.stat().st_size for file in sharded.glob("*.safetensors"))
    print(f"checkpoint {checkpoint / 1e6:.0f} MB, packed {packed / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    limit = packed + shard + 200_000_000
    assert limit < checkpoint  # else this test could not fail
    assert peak <= limit


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="mappings are read from Linux's /proc")
def test_packed_weights_are_mapped_privately(gemma4_folder: Path, tmp_path: Path) -> None:
    loaded = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=tmp_path)
    (file,) = tmp_path.glob("*/packed.safetensors")
    ranges = [
        [int(number, 16) for number in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    for name, weight in loaded.model.named_parameters():
        assert any(begin <= weight.data_ptr() < end for begin, end in ranges), f"{name} was copied"
    name = "layers.0.mlp.up_proj.tiles"
    with safe_open(file, framework="pt") as packed:
        before = packed.get_tensor(name).clone()
        loaded.model.get_parameter(name).data.zero_()
        assert torch.equal(packed.get_tensor(name), before)


def test_the_12b_has_as_many_tensors_and_parameters_as_published(gemma4_raw: dict[str, Any]) -> None:
    gemma4_raw["text_config"].update(
        vocab_size=262144,
        hidden_size=3840,
        intermediate_size=15360,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        global_head_dim=512,
        layer_types=[*["sliding_attention"] * 5, "full_attention"] * 8,
    )
    gemma4_raw["vision_config"] = {
        **{"patch_size": 16, "pooling_kernel_size": 3, "rms_norm_eps": 1e-6},
        **{"mm_embed_dim": 3840, "mm_posemb_size": 1120},
    }
    gemma4_raw["audio_config"]["audio_embed_dim"] = 640
    shapes = weight_shapes(config_from_hf(gemma4_raw))
    assert len(shapes) == 677
    assert sum(math.prod(shape) for shape in shapes.values()) == 11_959_730_224
