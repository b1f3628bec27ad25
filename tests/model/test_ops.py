"""Every fast operation agrees with plain torch, over odd shapes and on every instruction set of this processor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from jupyter_gemma.model import ops
from jupyter_gemma.model.cache import LayerCache, stored
from jupyter_gemma.model.masks import attention_mask, looks_ahead
from jupyter_gemma.model.quant import dequantize, quantize

SHAPES = [(16, 32), (48, 96), (80, 416), (2048, 4096)]
COUNTS = [1, 2, 3, 5, 7, 8, 33]


def case(rows: int, columns: int, count: int, kind: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [count, columns], tiles of a matrix [rows, columns], and their exact product in float64."""
    generator = torch.Generator().manual_seed(rows)
    quantized = quantize(torch.randn(rows, columns, generator=generator), kind)
    x = torch.randn(count, columns, generator=generator)
    return x, quantized.tiles, x.double() @ dequantize(quantized).double().t()


def assert_within(actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor) -> None:
    excess = (actual - expected).abs() - bound
    worst = excess.argmax()
    assert excess.max() <= 0, f"element {worst}: {actual.flatten()[worst]} is not {expected.flatten()[worst]}"


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_plain_product_is_the_exact_one(rows: int, columns: int, count: int, kind: str) -> None:
    x, tiles, expected = case(rows, columns, count, kind)
    bound = 4 * columns**0.5 * 2**-24 * expected.abs().max()  # float32, random rounding over K terms
    assert_within(ops.PLAIN.product(x, tiles, None), expected, bound)


def assert_bfloat16(actual: torch.Tensor, expected: torch.Tensor, x: torch.Tensor) -> None:
    """x, the scales and the result are rounded to bfloat16 (2^-9 each, relative); K terms of random sign."""
    spread = (x.abs().double() ** 2).sum(-1, keepdim=True).sqrt() * 2**-9 * 3
    assert_within(actual, expected, 6 * spread + 2**-8 * expected.abs())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (192, 416), (1024, 3840)])
def test_aten_int4_agrees_with_plain(rows: int, columns: int, count: int) -> None:
    x, tiles, expected = case(rows, columns, count, "int4")
    assert ops.ATEN_INT4.prepare is not None
    assert_bfloat16(ops.ATEN_INT4.product(x, *ops.ATEN_INT4.prepare(tiles)), expected, x)


@pytest.mark.parametrize("device", ["cuda", "mps"])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("rows", "columns"), [(64, 128), (192, 384), (1024, 3840)])
def test_tinygemm_agrees_with_plain(device: str, rows: int, columns: int, count: int) -> None:
    if not getattr(torch, device).is_available():
        pytest.skip(f"needs a {device} device")
    x, tiles, expected = case(rows, columns, count, "int4")
    assert ops.GPU_INT4.prepare is not None
    actual = ops.GPU_INT4.product(x.to(device), *ops.GPU_INT4.prepare(tiles.to(device)))
    assert_bfloat16(actual.cpu(), expected, x)


def test_plain_can_be_forced() -> None:
    assert ops.choose_ops("plain") is ops.PLAIN_OPS
    assert ops.choose_ops("plain", "cuda") is ops.PLAIN_OPS


def test_without_the_wheel_atens_kernel_or_plain_torch_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "load_kernels", lambda: None)
    chosen = ops.choose_ops("auto")
    assert chosen.paths["int4"].name in ("plain", "aten-int4")
    assert chosen.paths["int8"] is ops.PLAIN


# -- the compiled kernels --------------------------------------------------------------------------------------


def instruction_sets() -> list[str]:
    """Those of the wheel that this processor has; one name that skips where the wheel is not installed."""
    loaded = ops.load_kernels()
    return ["no wheel"] if loaded is None else loaded.available()


@pytest.fixture(params=instruction_sets())
def kernels(request: pytest.FixtureRequest):
    """The wheel, switched to one instruction set after the other."""
    loaded = ops.load_kernels()
    if loaded is None:
        pytest.skip("needs the wheel jupyter-gemma-kernels (make build)")
    before = loaded.choose()
    loaded.choose(request.param)
    yield loaded
    loaded.choose(before)


def rounded(x: torch.Tensor, most: int) -> torch.Tensor:
    """x with every group of 32 rounded to ``most`` steps as the kernels do; the product is then exact but for sums."""
    groups = x.view(len(x), -1, ops.GROUP)
    peak = groups.abs().amax(-1, keepdim=True)
    whole = torch.where(peak > 0, (groups * (most / peak)).round(), 0.0)
    return (whole.double() * (peak / most).double()).view_as(x)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize(("kind", "most", "noise"), [("int4", 127, 0.02), ("int8", 32767, 6e-5)])
def test_kernel_agrees_with_plain(kernels, kind, most: int, noise: float, rows: int, columns: int, count: int) -> None:
    """Activations are rounded to int8 or int16: held to plain torch with those, and by ``noise`` to unrounded ones."""
    x, tiles, _ = case(rows, columns, count, kind)
    x[0, :32] = 0  # a group without any magnitude
    actual = ops.kernel_path(kernels, kind).product(x, tiles, None)
    weight = ops.unpack(tiles).double()
    expected, exact = rounded(x, most) @ weight.t(), x.double() @ weight.t()
    # A value on the edge between two steps may fall to either side: one step of one input at most a few times.
    step = (x.view(count, -1, ops.GROUP).abs().amax(-1) / most).amax(-1, keepdim=True) * weight.abs().max()
    assert_within(actual, expected, 4 * columns**0.5 * 2**-24 * expected.abs().max() + step)
    assert (actual - exact).square().mean().sqrt() <= noise * exact.square().mean().sqrt()


def test_every_thread_count_gives_the_same_bits(kernels) -> None:
    x, tiles, _ = case(2048, 4096, 7, "int4")
    product = ops.kernel_path(kernels, "int4").product
    together = product(x, tiles, None)
    try:
        for count in (1, 2, 3, 7):
            kernels.use_threads(count)
            assert torch.equal(product(x, tiles, None), together)
    finally:
        kernels.use_threads(torch.get_num_threads())


def test_two_callers_at_once_get_their_own_results(kernels) -> None:
    product = ops.kernel_path(kernels, "int4").product
    cases = [case(2048, 4096, 3, "int4"), case(80, 416, 33, "int4")]
    expected = [product(x, tiles, None) for x, tiles, _ in cases]
    with ThreadPoolExecutor(4) as callers:
        for _ in range(20):
            runs = [callers.submit(product, x, tiles, None) for x, tiles, _ in cases * 2]
            assert all(torch.equal(run.result(), want) for run, want in zip(runs, expected * 2, strict=True))


def test_a_row_does_not_depend_on_its_company(kernels) -> None:
    """Greedy tokens must not change with the batch: every row is summed in the same order."""
    x, tiles, _ = case(80, 416, 33, "int4")
    product = ops.kernel_path(kernels, "int4").product
    together = product(x, tiles, None)
    for row in (0, 7, 8, 32):
        assert torch.equal(product(x[row : row + 1], tiles, None)[0], together[row])


@pytest.mark.parametrize("count", [1, 7, 4096, 10_001])
def test_gated_gelu_agrees_with_torch(kernels, count: int) -> None:
    gate, up = torch.linspace(-12, 12, count), torch.randn(count, generator=torch.Generator().manual_seed(0))
    actual = ops.kernel_ops(kernels).gated_gelu(gate, up)
    torch.testing.assert_close(actual, ops.PLAIN_OPS.gated_gelu(gate, up), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("width", [8, 27, 256, 3840])
@pytest.mark.parametrize("with_weight", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_rms_norm_agrees_with_torch(kernels, rows: int, width: int, with_weight: bool, with_residual: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, residual = torch.randn(2, rows, width, generator=generator)
    weight = torch.randn(width, generator=generator) if with_weight else None
    arguments = (10 * x, weight, 1e-6, residual if with_residual else None)
    actual, expected = ops.kernel_ops(kernels).rms_norm(*arguments), ops.PLAIN_OPS.rms_norm(*arguments)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("count", [1, 7, 8192, 20_001])
def test_softcap_agrees_with_torch(kernels, count: int) -> None:
    scores = torch.linspace(-400, 400, count)
    expected = ops.PLAIN_OPS.softcap(scores, 30.0)
    # 1 - 2 / (e^2u + 1) loses what tanh keeps near zero: a few units of the last place of the cap.
    torch.testing.assert_close(ops.kernel_ops(kernels).softcap(scores.clone(), 30.0), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 40])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(16, 8, 64), (4, 1, 32), (4, 4, 16), (40, 1, 16), (12, 1, 32)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_attention_agrees_with_torch(
    kernels, count: int, window: int | None, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(count)
    start = 57
    first = 0 if window is None else start - window + 1
    visible = start + count - first
    query = torch.randn(count, heads, width, generator=generator)
    # Views into a larger buffer, as a cache gives them.
    buffers = stored(torch.randn(2, kv_heads, 130, width, generator=generator), dtype)
    keys, values = buffers[:, :, 5 : 5 + visible]
    how = ops.Attending(count, attention_mask(start, count, first, window), None, window, 0.3)
    actual = ops.kernel_ops(kernels).attend(query, keys, values, how)
    torch.testing.assert_close(actual, ops.PLAIN_OPS.attend(query, keys, values, how), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(16, 8, 64), (12, 2, 32)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_step_of_several_sequences_agrees_with_torch(
    kernels, window: int | None, heads: int, kv_heads: int, width: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    counts, lengths = (1, 3, 12, 1, 40), (0, 57, 5, 300, 33)  # new positions of each sequence, and those before
    pictures = torch.tensor([-1] * 2 + [0] * 25 + [1] * 5 + [-1] * 8)  # one is longer than the window
    blocks = (None, None, None, None, None if window is None else pictures)
    caches = [[LayerCache(window, 8, dtype) for _ in counts] for _ in range(2)]
    attending = []
    for count, length, block, *pair in zip(counts, lengths, blocks, *caches, strict=True):
        past = torch.randn(2, kv_heads, length, width, generator=generator)
        for cache in pair:
            cache.append(*past)
        first = length - (pair[0].visible(count) - count)
        mask = attention_mask(length, count, first, window, block)
        ahead = None if block is None else looks_ahead(block)
        attending.append(ops.Attending(count, mask, ahead, window, 0.3))
    query = torch.randn(sum(counts), heads, width, generator=generator)
    key, value = torch.randn(2, sum(counts), kv_heads, width, generator=generator)
    sides = (ops.kernel_ops(kernels), ops.PLAIN_OPS)
    actual, expected = (
        side.append_and_attend(query, key, value, own, attending) for side, own in zip(sides, caches, strict=True)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*caches, strict=True):
        torch.testing.assert_close(ours.last(None), theirs.last(None), rtol=0, atol=0)
