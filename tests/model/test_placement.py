"""Budgets, and a model spread over memory and disk computes what it computes in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from torch import Tensor

from jupyter_gemma.errors import BadOption
from jupyter_gemma.model import placement
from jupyter_gemma.model.checkpoint import LoadedModel, load, open_source, plan_kinds
from jupyter_gemma.model.config import config_from_hf
from jupyter_gemma.model.decoder import Gemma, Prompt, SoftTokens
from jupyter_gemma.model.packed import PACKED_NAME, write_packed
from jupyter_gemma.model.placement import DISK, budgets, cgroup_free, choose_device, device_of, float_dtype, place

Make = Callable[..., Any]


def logits(loaded: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    picture = SoftTokens(
        offset=4,
        patches=torch.rand(4, 48, generator=generator),
        positions=torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)]),
    )
    clip = SoftTokens(offset=12, frames=torch.rand(3, 32, generator=generator) - 0.5)
    with torch.inference_mode():
        return loaded.model.logits_of(Prompt(torch.arange(20, 50), (picture, clip)))


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("limit", ["1KB", "40%", "80%"])
def test_from_disk_equals_in_memory(gemma4_folder: Path, tmp_path: Path, quantization: Any, limit: str) -> None:
    inside = load(gemma4_folder, quantization=quantization, device="cpu")
    share = limit.endswith("%")
    size: str | int = inside.resident_bytes * int(limit.removesuffix("%")) // 100 if share else limit
    outside = load(
        gemma4_folder, quantization=quantization, device="cpu", max_memory={"cpu": size}, offload_dir=tmp_path / "off"
    )
    assert DISK in outside.device_map.values()
    assert outside.resident_bytes < inside.resident_bytes
    if limit == "80%":
        assert outside.resident_bytes > 0
    for _ in range(2):  # weights go back to disk and are fetched again
        assert torch.equal(logits(outside), logits(inside))


def test_from_disk_through_a_packed_file_of_the_user(gemma4_folder: Path, tmp_path: Path) -> None:
    """No second copy is made, and float weights in another dtype are converted on the way."""
    source = open_source(gemma4_folder)
    kinds = plan_kinds(source, "int4")
    write_packed(source, kinds, tmp_path / "model" / PACKED_NAME, torch.bfloat16)
    outside = load(tmp_path / "model", quantization="int4", device="cpu", max_memory={"cpu": 1000})
    assert outside.resident_bytes == 0
    assert torch.equal(logits(outside), logits(load(gemma4_folder, quantization="int4", device="cpu")))


def test_gemma3_from_disk(tmp_path: Path, gemma3_raw: dict[str, Any], make_weights: Make, make_hf: Make) -> None:
    folder = make_hf(tmp_path / "g3", gemma3_raw, make_weights(gemma3_raw))
    ids = Prompt(torch.arange(20, 50))
    with torch.inference_mode():
        inside = load(folder, device="cpu").model.logits_of(ids)
        outside = load(folder, device="cpu", max_memory={"cpu": "1KB"}, cache_dir=tmp_path / "cache")
        assert torch.equal(outside.model.logits_of(ids), inside)


@pytest.fixture
def empty(gemma4_raw: dict[str, Any]) -> Gemma:
    with init_empty_weights():
        model = Gemma(config_from_hf(gemma4_raw))
    model.tie()
    return model


def total(model: Gemma, dtype: torch.dtype) -> int:
    return sum(parameter.numel() * dtype.itemsize for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_fits_goes_to_the_first_device(empty: Gemma, dtype: torch.dtype) -> None:
    size = total(empty, dtype)
    assert place(empty, dtype, {"cpu": size}) == {"": "cpu"}
    assert DISK in place(empty, dtype, {"cpu": size - 1}).values()


def test_order_is_gpu_then_cpu_then_disk(empty: Gemma) -> None:
    size = total(empty, torch.bfloat16)
    found = place(empty, torch.bfloat16, {0: size * 7 // 10, "cpu": size * 6 // 10})
    assert set(found.values()) <= {0, "cpu", DISK}
    order = [(0, "cpu", DISK).index(device_of(f"layers.{index}.mlp.up_proj.weight", found)) for index in range(4)]
    assert order == sorted(order)
    assert device_of("embed_tokens.weight", found) == 0
    assert device_of("head.weight", found) == 0  # tied


def test_innermost_module_decides() -> None:
    found = {"": "cpu", "layers.1": DISK, "layers.10": 0}
    assert device_of("layers.1.mlp.up_proj.weight", found) == DISK
    assert device_of("layers.10.layer_scalar", found) == 0
    assert device_of("norm.weight", found) == "cpu"


def test_a_limit_wins_over_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: {0: 1000, "cpu": 2000})
    assert budgets("cuda", None) == {0: 900, "cpu": 1800}
    assert budgets("cuda", {"cpu": "6GB", "cuda": "1GiB"}) == {0: 2**30, "cpu": 6 * 10**9}
    assert budgets("cuda", {"cuda:0": 5, "0": 7}) == {0: 7, "cpu": 1800}


@pytest.mark.parametrize(
    ("limits", "said"), [({"cuda:3": "1GB"}, "'cuda:3'.*in use are: cpu"), ({"cpu": "lots"}, "'lots'")]
)
def test_bad_limits_are_refused(monkeypatch: pytest.MonkeyPatch, limits: dict[str, str | int], said: str) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: {"cpu": 2000})
    with pytest.raises(BadOption, match=said):
        budgets("cpu", limits)


def test_free_memory_of_this_machine_is_plausible() -> None:
    free = placement.free_memory("cpu")["cpu"]
    assert 1 << 20 < free < 1 << 50


def test_a_container_limit_counts(tmp_path: Path) -> None:
    assert cgroup_free(tmp_path) == 1 << 62
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert cgroup_free(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_free(tmp_path) == 1 << 62


def test_device_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(BadOption, match="no mps device"):
        choose_device("mps")
    assert (float_dtype("cpu"), float_dtype("cuda")) == (torch.float32, torch.bfloat16)


@pytest.mark.skipif(placement._malloc_trim() is None, reason="needs the C library of Linux")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    blocks = [torch.ones(12_000) for _ in range(2000)]  # 96 MB, each too small to be a mapping of its own
    del blocks[:-1]  # the last one keeps the others from being cut off the end of the heap
    before = resident()
    placement.release_freed_memory()
    assert before - resident() > 50_000_000
