"""Tokens a second: one sequence, several at once, a prompt."""

from __future__ import annotations

import functools
import math

import torch

from jupyter_gemma.bench.bandwidth import Memory
from jupyter_gemma.bench.report import Report, milliseconds, rounded
from jupyter_gemma.bench.subject import Options, Subject, packed_folder
from jupyter_gemma.bench.timing import Times, alternate, timed
from jupyter_gemma.model.weights import weight_shapes

ROWS = (1, 2, 4, 8, 16)
PROMPT = 256
_PROMPTS = (64, PROMPT)
_CONTEXTS = (64, 1024, 4096, 8192)


def decode(chosen: Options) -> Report:
    """One token at a time, against the speed of memory, and by the length of the context."""
    subject = Subject.open(packed_folder(chosen.config, chosen))
    memory = Memory(chosen.buffer, torch.get_num_threads())
    ways = {f"read by {name}": timed(work) for name, work in memory.ways().items()}
    times = alternate({"step": timed(subject.steps(1)), **ways}, chosen.seconds)
    by_context = _by_context(subject, chosen.seconds / 2)
    weights = subject.bytes_read
    median = max(memory.size / times[way].median for way in ways)
    best = max(memory.size / times[way].best for way in ways)
    sizes = {name: weights if name == "step" else memory.size for name in times}
    step = times["step"]
    share, best_share = weights / step.median / median, weights / step.best / best
    return Report(
        f"decode: one token at a time, {len(chosen.config.layers)} layers, {weights / 1e9:.3f} GB of weights",
        ("", "ms", "min", "GB/s", "max"),
        [
            *(_row(name, times[name], sizes[name]) for name in times),
            *(_row(f"step at context {context}", found, weights) for context, found in by_context.items()),
        ],
        {
            "decode.tokens_per_s": rounded(1 / step.median),
            "decode.weights_gb": rounded(weights / 1e9),
            "decode.read_gb_per_s": rounded(median / 1e9),
            "decode.share_of_read_bandwidth": rounded(share),
            "decode.share_of_read_bandwidth_best": rounded(best_share),
            "decode.tokens_per_s_by_context": {
                str(context): rounded(1 / found.median) for context, found in by_context.items()
            },
        },
        [f"{share:.1%} of the memory's speed; best against best {best_share:.1%}"],
    )


def _by_context(subject: Subject, seconds: float) -> dict[int, Times]:
    sides = {str(context): timed(subject.steps(1, context)) for context in _CONTEXTS}
    return {int(context): found for context, found in alternate(sides, seconds).items()}


def _row(name: str, times: Times, size: int) -> tuple[str, ...]:
    return (
        name,
        milliseconds(times.median),
        milliseconds(times.best),
        f"{size / times.median / 1e9:.1f}",
        f"{size / times.best / 1e9:.1f}",
    )


def batch(chosen: Options) -> Report:
    """Several sequences at once: the weights are read once for all."""
    subject = Subject.open(packed_folder(chosen.config, chosen))
    times = alternate({str(rows): timed(subject.steps(rows)) for rows in ROWS}, chosen.seconds)
    rate = {rows: rows / times[str(rows)].median for rows in ROWS}
    best = {rows: rows / times[str(rows)].best for rows in ROWS}
    return Report(
        "batch: sequences at once",
        ("sequences", "ms", "min", "tokens/s", "speed-up", "of the best"),
        [
            (
                str(rows),
                milliseconds(times[str(rows)].median),
                milliseconds(times[str(rows)].best),
                f"{rate[rows]:.2f}",
                f"{rate[rows] / rate[1]:.2f}",
                f"{best[rows] / best[1]:.2f}",
            )
            for rows in ROWS
        ],
        {
            "batch.tokens_per_s": {str(rows): rounded(rate[rows]) for rows in ROWS},
            **{f"batch.speedup_{rows}": rounded(rate[rows] / rate[1]) for rows in ROWS[1:]},
        },
    )


def prefill(chosen: Options) -> Report:
    """Reading a prompt: the arithmetic decides, not the memory."""
    subject = Subject.open(packed_folder(chosen.config, chosen))
    sides = {str(count): timed(functools.partial(subject.prefill, count)) for count in _PROMPTS}
    times = alternate(sides, chosen.seconds)
    operations = 2 * sum(math.prod(shape) for name, shape in weight_shapes(chosen.config).items() if "_proj." in name)
    return Report(
        "prefill: reading a prompt in one step",
        ("tokens", "ms", "min", "tokens/s", "GOP/s"),
        [
            (
                str(count),
                milliseconds(times[str(count)].median),
                milliseconds(times[str(count)].best),
                f"{count / times[str(count)].median:.1f}",
                f"{count * operations / times[str(count)].median / 1e9:.0f}",
            )
            for count in _PROMPTS
        ],
        {
            "prefill.tokens_per_s": rounded(PROMPT / times[str(PROMPT)].median),
            "prefill.gop_per_s": rounded(PROMPT * operations / times[str(PROMPT)].median / 1e9),
        },
    )
