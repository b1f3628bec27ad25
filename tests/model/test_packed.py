"""The packed file equals its source, is reused, and never stands in the way when it is broken."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint, OutOfMemory
from jupyter_gemma.model import packed
from jupyter_gemma.model.checkpoint import LoadedModel, load, open_source, plan_kinds
from jupyter_gemma.model.decoder import Prompt
from jupyter_gemma.model.packed import PackedSource, write_packed
from jupyter_gemma.types import Progress

Make = Callable[..., Any]


def logits(loaded: LoadedModel) -> Tensor:
    with torch.inference_mode():
        return loaded.model.logits_of(Prompt(torch.arange(20, 50)))


def only_file(folder: Path) -> Path:
    (file,) = (path for path in folder.rglob("*") if path.is_file())
    return file


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_packed_file_equals_its_source(gemma4_folder: Path, tmp_path: Path, quantization: Any) -> None:
    source = open_source(gemma4_folder)
    kinds = plan_kinds(source, quantization)
    write_packed(source, kinds, tmp_path / "packed" / packed.PACKED_NAME, torch.float32)
    again = open_source(tmp_path / "packed")
    assert isinstance(again, PackedSource)
    assert (again.config, again.kinds, again.digest()) == (source.config, kinds, source.digest())
    direct = load(gemma4_folder, quantization=quantization, device="cpu")
    mapped = load(tmp_path / "packed", quantization=quantization, device="cpu")
    theirs = mapped.model.state_dict()
    for name, value in direct.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert torch.equal(logits(direct), logits(mapped))
    assert (mapped.digest, mapped.resident_bytes) == (direct.digest, direct.resident_bytes)


def test_any_safetensors_reader_opens_it_and_tensors_are_aligned(gemma4_folder: Path, tmp_path: Path) -> None:
    source, file = open_source(gemma4_folder), tmp_path / packed.PACKED_NAME
    write_packed(source, plan_kinds(source, "int4"), file, torch.bfloat16)
    tensors = load_file(file)
    assert tensors["embed_tokens.tiles"].shape[-1] == 544
    assert tensors["layers.0.mlp.up_proj.tiles"].shape == (96 // 16, 64 // 32, 288)
    assert tensors["norm.weight"].dtype == torch.bfloat16
    length = int.from_bytes(file.read_bytes()[:8], "little")
    header = json.loads(file.read_bytes()[8 : 8 + length])
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "I8": 1, "U8": 1}
    assert (8 + length) % 64 == 0
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0, name


def test_written_block_by_block_it_is_the_same(
    gemma4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(gemma4_folder)
    kinds = plan_kinds(source, "int4")
    write_packed(source, kinds, tmp_path / "whole", torch.float32)
    monkeypatch.setattr("jupyter_gemma.model.weights._BLOCK_VALUES", 500)
    write_packed(source, kinds, tmp_path / "blocks", torch.float32)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "blocks").read_bytes()


def test_the_copy_is_reused(gemma4_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache)
    seen: list[Progress] = []
    stamp = only_file(cache).stat().st_mtime_ns
    second = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache, progress=seen.append)
    assert {step.phase for step in seen} == {"loading weights"}
    assert only_file(cache).stat().st_mtime_ns == stamp
    assert torch.equal(logits(first), logits(second))
    assert torch.equal(logits(first), logits(load(gemma4_folder, quantization="int4", device="cpu")))


def test_float_weights_need_no_copy(gemma4_folder: Path, tmp_path: Path) -> None:
    load(gemma4_folder, quantization="none", device="cpu", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_changed_checkpoint_gets_a_new_copy(
    gemma4_folder: Path, tmp_path: Path, gemma4_raw: dict[str, Any], make_weights: Make, make_hf: Make
) -> None:
    cache = tmp_path / "cache"
    before = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache)
    make_hf(gemma4_folder, gemma4_raw, make_weights(gemma4_raw, seed=1))
    os.utime(gemma4_folder / "model.safetensors", ns=(1, 1))  # whatever the clock's resolution
    after = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache)
    assert before.digest != after.digest
    assert torch.equal(logits(after), logits(load(gemma4_folder, quantization="int4", device="cpu")))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def foreign(file: Path) -> None:
    file.write_text("no model")


def of_another(file: Path) -> None:
    """A whole file, but its header names another source (of the same length)."""
    data = file.read_bytes()
    at = data.index(b'"source": "') + len(b'"source": "')
    file.write_bytes(data[:at] + b"0" * 64 + data[at + 64 :])


def older(file: Path) -> None:
    now = f'"version": "{packed.FORMAT["version"]}"'.encode()
    file.write_bytes(file.read_bytes().replace(now, b'"version": "0"'))


@pytest.mark.parametrize("damage", [cut, foreign, of_another, older])
def test_a_bad_copy_is_made_again(gemma4_folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    cache = tmp_path / "cache"
    good = logits(load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache))
    whole = only_file(cache).read_bytes()
    damage(only_file(cache))
    again = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=cache)
    assert torch.equal(logits(again), good)
    assert only_file(cache).read_bytes() == whole


@pytest.mark.parametrize("damage", [cut, foreign, older])
def test_a_bad_file_given_by_the_user_is_refused(
    gemma4_folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    source, file = open_source(gemma4_folder), tmp_path / "model" / packed.PACKED_NAME
    write_packed(source, plan_kinds(source, "int4"), file, torch.float32)
    damage(file)
    with pytest.raises(BadCheckpoint, match=r"packed\.safetensors .*Delete it"):
        open_source(file.parent)


def full_disk(*arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_the_copy_and_nothing_else(
    gemma4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed.os, "fsync", full_disk)
    seen: list[Progress] = []
    loaded = load(gemma4_folder, quantization="int4", device="cpu", cache_dir=tmp_path / "cache", progress=seen.append)
    assert "going on without a packed copy (No space left on device)" in [step.phase for step in seen]
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    assert torch.equal(logits(loaded), logits(load(gemma4_folder, quantization="int4", device="cpu")))


def test_a_full_disk_is_an_error_when_weights_must_be_read_from_it(
    gemma4_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed.os, "fsync", full_disk)
    with pytest.raises(OutOfMemory, match=r"cannot be written .*Free disk space"):
        load(gemma4_folder, device="cpu", max_memory={"cpu": 1000}, offload_dir=tmp_path / "cache")


def test_stopping_while_packing_leaves_nothing(gemma4_folder: Path, tmp_path: Path) -> None:
    def stop(step: Progress) -> None:
        if step.done > step.total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(gemma4_folder, quantization="int4", device="cpu", cache_dir=tmp_path / "cache", progress=stop)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_leftovers_of_a_killed_process_go(gemma4_folder: Path, tmp_path: Path) -> None:
    for name, modified in (("old.part", 0.0), ("growing.part", None)):
        (tmp_path / name).write_text("half")
        if modified is not None:
            os.utime(tmp_path / name, (modified, modified))
    source = open_source(gemma4_folder)
    write_packed(source, plan_kinds(source, "int4"), tmp_path / packed.PACKED_NAME, torch.float32)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"growing.part", packed.PACKED_NAME}
