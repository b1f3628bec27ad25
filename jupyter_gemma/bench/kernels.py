"""Every operation of the compute kernels beside plain torch's and, where there is one, ATen's."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from jupyter_gemma.bench.report import Report, milliseconds, rounded
from jupyter_gemma.bench.subject import Options
from jupyter_gemma.bench.timing import Times, alternate, timed
from jupyter_gemma.model.cache import stored
from jupyter_gemma.model.ops import ATEN_INT4, PLAIN, PLAIN_OPS, Attending, Ops, Path, WeightKind, choose_ops
from jupyter_gemma.model.quant import tiles_shape

# Weights are read from memory, not from caches: equal matrices with so great a part of Options.buffer take turns.
_SPREAD = 5
_HEAD_ROWS = 1 << 15
_COUNTS = (1, 4, 8, 256)


@dataclass(frozen=True)
class Case:
    """One operation on one shape. ``size``: bytes read and written; ``work``: multiplications and sums."""

    name: str
    shape: str
    size: int
    work: int
    sides: Mapping[str, Callable[[], object]]


def kernels(chosen: Options) -> Report:
    """All operations over the shapes of the model."""
    fast = choose_ops()
    done = [(case, _times(case, chosen.seconds / 15)) for case in _cases(chosen, fast)]
    return Report(
        f"kernels: {fast.paths['int4'].name}",
        ("operation", "shape", "ms", "min", "GB/s", "GOP/s", "plain ms", "ATen ms", "speed-up"),
        [_row(case, times) for case, times in done],
        {"kernels.path": fast.paths["int4"].name, "kernels.rows": [_figures(case, times) for case, times in done]},
    )


def _times(case: Case, seconds: float) -> dict[str, Times]:
    return alternate({name: timed(side) for name, side in case.sides.items()}, seconds, least=2)


def _row(case: Case, times: Mapping[str, Times]) -> tuple[str, ...]:
    fast, plain = times["fast"], times["plain"]
    return (
        case.name,
        case.shape,
        milliseconds(fast.median),
        milliseconds(fast.best),
        f"{case.size / fast.median / 1e9:.1f}",
        f"{case.work / fast.median / 1e9:.0f}",
        milliseconds(plain.median),
        milliseconds(times["aten"].median) if "aten" in times else "",
        f"{plain.median / fast.median:.1f}",
    )


def _figures(case: Case, times: Mapping[str, Times]) -> dict[str, object]:
    fast = times["fast"].median
    return {
        "operation": case.name,
        "shape": case.shape,
        "gb_per_s": rounded(case.size / fast / 1e9),
        "gop_per_s": rounded(case.work / fast / 1e9),
        **{f"{name}_ms": rounded(1000 * found.median) for name, found in times.items()},
    }


def _cases(chosen: Options, fast: Ops) -> Iterator[Case]:
    hidden, inner, vocab = chosen.config.hidden_size, chosen.config.intermediate_size, chosen.config.vocab_size
    for shape in ((inner, hidden), (hidden, inner)):
        yield from _products(fast, "int4", shape, chosen.buffer // _SPREAD)
    yield from _products(fast, "int8", (min(vocab, _HEAD_ROWS), hidden), chosen.buffer // _SPREAD)
    for count in (1, 256):
        yield _norm(fast, count, hidden)
        yield _gelu(fast, count, inner)
    yield _softcap(fast, vocab)
    for kind, positions in (("sliding", 1024), ("full", 8192)):
        for dtype in (fast.cache_dtype, torch.int8):
            yield _attend(chosen, fast, kind, positions, dtype)


def _products(fast: Ops, kind: WeightKind, shape: tuple[int, int], spread: int) -> Iterator[Case]:
    tiles = torch.randint(0, 60, tiles_shape(shape, kind), dtype=torch.uint8)
    works = {"fast": _product(fast.paths[kind], tiles, spread), "plain": _product(PLAIN, tiles, spread)}
    if kind == "int4":
        # Not every build of torch has the operator.
        with contextlib.suppress(RuntimeError, AttributeError, NotImplementedError):
            works["aten"] = _product(ATEN_INT4, tiles, spread)
    for count in _COUNTS:
        x = torch.randn(count, shape[1])
        sides = {name: functools.partial(work, x) for name, work in works.items()}
        size, work = tiles.nbytes + 4 * count * sum(shape), 2 * count * shape[0] * shape[1]
        yield Case(f"{kind} product", f"{count} x {shape[1]} -> {shape[0]}", size, work, sides)


def _product(path: Path, tiles: Tensor, spread: int) -> Callable[[Tensor], Tensor]:
    packed, extra = (tiles, None) if path.prepare is None else path.prepare(tiles)
    copies = itertools.cycle([packed.clone() for _ in range(max(1, spread // packed.nbytes))])
    return lambda x: path.product(x, next(copies), extra)


def _norm(fast: Ops, count: int, width: int) -> Case:
    x, weight = torch.randn(count, width), torch.randn(width)
    sides = _sides(fast, lambda ops: ops.rms_norm(x, weight, 1e-6, x))
    return Case("norm + residual", f"{count} x {width}", 3 * x.nbytes, 5 * x.numel(), sides)


def _gelu(fast: Ops, count: int, width: int) -> Case:
    x = torch.randn(count, width)
    return Case(
        "gated GELU", f"{count} x {width}", 3 * x.nbytes, 10 * x.numel(), _sides(fast, lambda ops: ops.gated_gelu(x, x))
    )


def _softcap(fast: Ops, width: int) -> Case:
    x = torch.randn(1, width)
    return Case("softcap", f"1 x {width}", 2 * x.nbytes, 3 * x.numel(), _sides(fast, lambda ops: ops.softcap(x, 30.0)))


def _attend(chosen: Options, fast: Ops, kind: str, positions: int, dtype: torch.dtype | None) -> Case:
    shape = chosen.config.attention[kind]
    query = torch.randn(1, shape.heads, shape.head_dim)
    whole = torch.randn(2, shape.kv_heads, positions, shape.head_dim)
    held = stored(whole, dtype)
    how = Attending(1, None, None, shape.window, 1.0)
    sides = {
        "fast": lambda: fast.attend(query, held[0], held[1], how),
        "plain": lambda: PLAIN_OPS.attend(query, whole[0], whole[1], how),
    }
    work = 4 * shape.heads * shape.head_dim * positions
    name = f"{kind} attention in {str(held.dtype).removeprefix('torch.')}"
    return Case(name, f"1 x {positions}", held.nbytes, work, sides)


def _sides(fast: Ops, call: Callable[[Ops], object]) -> dict[str, Callable[[], object]]:
    return {"fast": lambda: call(fast), "plain": lambda: call(PLAIN_OPS)}
