"""The same weights in llama.cpp and here, side by side in one run."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from jupyter_gemma.bench.gguf_file import write_gguf
from jupyter_gemma.bench.peer import STRIDE, Peer
from jupyter_gemma.bench.report import Report, milliseconds, rounded
from jupyter_gemma.bench.speed import PROMPT
from jupyter_gemma.bench.subject import CONTEXT, Options, Steps, Subject, packed_folder
from jupyter_gemma.bench.timing import Side, Times, alternate, timed
from jupyter_gemma.model.decoder import Prompt
from jupyter_gemma.model.packed import PACKED_NAME, PackedSource
from jupyter_gemma.model.random import random_prompt
from jupyter_gemma.types import Progress

_ROWS = (1, 4, 8)
_OURS = "ours"
_FLASH = {"llama.cpp": False, "llama.cpp, flash attention": True}
# Threads that wait for more work give up by then.
_PAUSE = 0.02


def compare(chosen: Options) -> Report:
    """Tokens a second over llama.cpp's, which may use flash attention or not, as it is faster."""
    if importlib.util.find_spec("llama_cpp") is None:
        return Report("compare: llama-cpp-python is not installed (pip install 'jupyter-gemma[oracle]')")
    # Both sides read the same bytes: the table is in four bits too.
    folder = packed_folder(chosen.config, chosen, table="int4")
    subject = Subject.open(folder)
    with Peer(_gguf(folder, chosen), torch.get_num_threads()) as peer:
        noise = _noise(subject, peer)
        times = {f"{rows} at once": _steps(subject, peer, rows, chosen.seconds) for rows in _ROWS}
        times[f"prompt of {PROMPT}"] = _prefill(subject, peer, chosen.seconds)
    ratios = [_best_of(found) / found[_OURS].median for found in times.values()]
    names = ["decode.ratio_llamacpp", *(f"batch.ratio_llamacpp_{rows}" for rows in _ROWS[1:]), "prefill.ratio_llamacpp"]
    return Report(
        "compare: the same weights in llama.cpp",
        ("", "ms", "min", *(f"{name}{part}" for name in _FLASH for part in (" ms", " min")), "ratio"),
        [_row(name, found, ratio) for (name, found), ratio in zip(times.items(), ratios, strict=True)],
        {
            **{name: rounded(ratio) for name, ratio in zip(names, ratios, strict=True)},
            "compare.logit_noise": rounded(noise),
            "compare.tokens_per_s": _rates(times),
        },
        [f"logits after {CONTEXT} tokens differ by {noise:.1%}, as activations rounded to 8 bits may"],
    )


def _gguf(folder: Path, chosen: Options) -> Path:
    path = folder / "model.gguf"
    if not path.exists():
        chosen.progress(Progress("writing the same weights as GGUF"))
        write_gguf(PackedSource(folder / PACKED_NAME), path)
    return path


def _noise(subject: Subject, peer: Peer) -> float:
    """Root mean square of the difference of logits over that of theirs: whether both compute the same."""
    prompt = random_prompt(subject.config, CONTEXT)
    theirs = np.array(peer.logits(False, prompt.tolist()))
    ours = subject.read(Prompt(prompt), subject.sequence(0))[0, ::STRIDE].numpy()
    return float(np.sqrt(np.mean((ours - theirs) ** 2) / np.mean(theirs**2)))


def _steps(subject: Subject, peer: Peer, rows: int, seconds: float) -> dict[str, Times]:
    prompts = [random_prompt(subject.config, CONTEXT, seed) for seed in range(rows)]
    caches = [subject.sequence(0) for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        subject.read(Prompt(prompt), cache)
    sides: dict[str, Side] = {_OURS: timed(Steps(subject, torch.stack(prompts)[:, 0], caches))}
    for name, flash in _FLASH.items():
        peer.begin(flash, [prompt.tolist() for prompt in prompts])
        sides[name] = functools.partial(peer.step, flash, rows)
    return alternate(sides, seconds, pause=_PAUSE)


def _prefill(subject: Subject, peer: Peer, seconds: float) -> dict[str, Times]:
    prompt = random_prompt(subject.config, PROMPT).tolist()
    sides: dict[str, Side] = {_OURS: timed(lambda: subject.prefill(PROMPT))}
    sides.update({name: functools.partial(peer.prefill, flash, prompt) for name, flash in _FLASH.items()})
    return alternate(sides, seconds, pause=_PAUSE)


def _best_of(found: Mapping[str, Times]) -> float:
    return min(found[name].median for name in _FLASH)


def _row(name: str, found: Mapping[str, Times], ratio: float) -> Sequence[str]:
    cells = (milliseconds(value) for times in found.values() for value in (times.median, times.best))
    return (name, *cells, f"{ratio:.2f}")


def _rates(times: Mapping[str, Mapping[str, Times]]) -> dict[str, dict[str, float]]:
    """Tokens a second by side and number of sequences."""
    return {
        "ours": {str(rows): rounded(rows / times[f"{rows} at once"][_OURS].median) for rows in _ROWS},
        "llama.cpp": {str(rows): rounded(rows / _best_of(times[f"{rows} at once"])) for rows in _ROWS},
    }
