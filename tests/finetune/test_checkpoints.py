"""A run that was killed goes on exactly; a full disk takes nothing away."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.finetune import lora, state

PROGRAM = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.finetune.plan import make_plan
from jupyter_gemma.finetune.train import Base, Training
from jupyter_gemma.model.checkpoint import load
path, data, out, method, last = Path(sys.argv[1]), *sys.argv[2:5], int(sys.argv[5])
loaded, tokenizer = load(path, quantization="none", device="cpu"), load_tokenizer(path)
template = load_template(path, tokenizer, instruct=True, architecture="gemma4_unified")
builder = PromptBuilder(loaded.config, tokenizer, template, read_media_config(path, loaded.config), 512)
plan = make_plan({"data": data, "out": out, "steps": 7, "batch": 4, "warmup": 2, "rate": 1e-3, "rank": 4,
                  "method": method, "dropout": float(sys.argv[6]), "save_every": 2})
def told(progress):
    if progress.done == last:
        os.kill(os.getpid(), signal.SIGKILL)
Training(Base(loaded, builder, path, "tiny"), plan, told).run()
"""

# accelerate shards on GPUs only; so this does to the module what its FSDP 2 would, with torch's own.
SHARDED = """
from contextlib import contextmanager
import accelerate, torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
import jupyter_gemma.finetune.train
class Sharding(accelerate.Accelerator):
    def prepare(self, objective, optimizer):
        names = {id(weight): name for name, weight in objective.named_parameters()}
        learning = [names[id(weight)] for weight in optimizer.param_groups[0]["params"]]
        mesh = init_device_mesh("cpu", (self.num_processes,))
        for module in (*objective.model.layers, objective):
            fully_shard(module, mesh=mesh)
        shards = dict(objective.named_parameters())
        return objective, torch.optim.AdamW([shards[name] for name in learning], weight_decay=0.0)
    @contextmanager
    def no_sync(self, objective):
        objective.set_requires_gradient_sync(False)
        yield
        objective.set_requires_gradient_sync(True)
    def clip_grad_norm_(self, weights, most):
        return torch.nn.utils.clip_grad_norm_(weights, most)
jupyter_gemma.finetune.train.Accelerator = Sharding
"""


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_after_a_kill_the_losses_are_the_same(tiny, write_lines, conversations, tmp_path):
    data = str(write_lines(conversations))

    def run(out, last):
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), str(tiny[1]), data, str(out)]
        environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        return subprocess.run([*command, "lora", str(last), "0.2"], env=environ, check=False).returncode

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "killed", 5) == -signal.SIGKILL
    assert len(losses(tmp_path / "killed")) == 5
    assert run(tmp_path / "killed", 0) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    killed, whole = (tmp_path / name / "adapter_model.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_have_the_losses_of_one(tiny, write_lines, conversations, tmp_path, method):
    """Whether each has all the weights or a shard of them, and after a kill too; not all see pictures and sound."""
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def run(name, count, before="", last=0):
        program = tmp_path / f"{name}.py"
        program.write_text(before + textwrap.dedent(PROGRAM))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
        told = [tiny[1], write_lines(conversations), tmp_path / name, method, last, 0.0]
        command = [*launch, str(program), *map(str, told)]
        return subprocess.run(command, env=environ, check=False, timeout=120).returncode

    assert run("one", 1) == 0
    assert run("each", 2) == 0
    assert run("sharded", 2, SHARDED, last=5) != 0
    assert len(losses(tmp_path / "sharded")) == 5
    assert run("sharded", 2, SHARDED) == 0
    for name in ("each", "sharded"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize("kind", ["full", "words only"])
def test_all_weights_go_on_exactly_too(start, tmp_path, write_lines, conversations, kind):
    """And so does a run whose data never move the projections of pictures and sound."""
    words = write_lines(conversations[:1], "words.jsonl")
    told = {"steps": 5, "save_every": 2, **({"method": "full"} if kind == "full" else {"data": str(words)})}
    start(**told, out=str(tmp_path / "whole")).run()
    broken = start(**told, out=str(tmp_path / "broken"))

    def stop(progress):
        if progress.done == 3:
            raise KeyboardInterrupt

    broken.progress = stop
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = start(**told, out=str(tmp_path / "broken"))
    assert again.state.step == 2
    again.run()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    name = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    ours, theirs = (tmp_path / each / name for each in ("broken", "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_full_disk_leaves_the_last_checkpoint(start, monkeypatch):
    training = start(steps=4, save_every=1)
    whole = lora.save_file
    written = []

    def fill(tensors, path, metadata):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(tensors, path, metadata)

    monkeypatch.setattr(lora, "save_file", fill)
    with pytest.raises(ModelError, match=r"No space left on device.*goes on from there"):
        training.run()
    assert not list(training.out.glob("*.part"))
    again = start(steps=4, save_every=1)
    assert again.state.step == 2
    assert again.run().step == 4
    assert len(losses(again.out)) == 4


def test_a_checkpoint_of_another_run_is_not_taken(start):
    start(steps=2).run()
    with pytest.raises(BadOption, match="belongs to a run with other data or settings"):
        start(steps=2, rate=5e-3)


def test_a_finished_run_is_not_done_again(start):
    training = start(steps=2)
    training.run()
    before = (training.out / state.CHECKPOINT).stat().st_mtime_ns
    assert start(steps=2).run().step == 2
    assert (training.out / state.CHECKPOINT).stat().st_mtime_ns == before
