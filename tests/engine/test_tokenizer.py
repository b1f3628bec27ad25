"""Text to ids and back: the demo's byte-level vocabulary, the real 270M's scores, a small list of merges."""

import itertools
import json
import random
import time
from pathlib import Path

import gguf
import pytest

import jupyter_gemma
from jupyter_gemma.engine.tokenizer import Tokenizer, load_tokenizer, merges_from_scores
from jupyter_gemma.errors import BadCheckpoint

DEMO = Path(jupyter_gemma.__file__).parent / "models" / "demo"
TEXTS = [
    "",
    "The mean of price is 12.50 (max 99).",
    "def f(x):\n    return x ** 2  # square\n\n\n\n",
    "  leading and   inner    spaces ",
    "Grüße, 東京, Привет, नमस्ते",
    "👩‍👩‍👧 family, 🇫🇷 flag, e\u0301 combining",
    "tabs\t\tand\r\nwindows\x7f",
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


@pytest.fixture(scope="module")
def demo():
    return load_tokenizer(DEMO)


@pytest.fixture(scope="module")
def gemma3(gemma3_file):
    return load_tokenizer(gemma3_file)


def stream(tokenizer: Tokenizer, ids):
    decoder = tokenizer.stream()
    return [decoder.push(number) for number in ids], decoder.flush()


# ------------------------------------------------------------------------------------------------ tokenizer.json


@pytest.mark.parametrize("text", TEXTS)
def test_demo_gives_the_text_back(demo, text):
    ids = demo.encode(text)
    pieces, rest = stream(demo, ids)
    assert demo.decode(ids) == text
    assert "".join(pieces) == text
    assert rest == ""


def test_special_tokens_are_recognised_and_none_is_added(demo):
    ids = demo.encode("<bos><|turn>user\nHi<turn|>")
    assert ids[0] == demo.special["<bos>"] == demo.id_of("<bos>") == 2
    assert demo.token_of(ids[1]) == "<|turn>"
    assert demo.decode(ids) == "<bos><|turn>user\nHi<turn|>"
    assert demo.decode(ids, skip_special=True) == "user\nHi"
    assert demo.encode("Hi")[0] not in demo.special.values()


def test_what_a_vocabulary_knows_of_itself(demo):
    assert demo.size == 1024
    assert demo.bos_text == "<bos>"
    assert demo.id_of("no such token") is None
    assert demo.token_of(5000) == ""
    assert demo.decode([5000]) == ""


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path):
    raw = json.loads((DEMO / "tokenizer.json").read_text("utf-8"))
    raw["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), "utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a longer text than two tokens")) == "a longer text than two tokens"


# ------------------------------------------------------------------------------------------------ streaming


def test_a_character_comes_when_it_is_complete(demo):
    ids = demo.encode("a😀b")
    pieces, rest = stream(demo, ids)
    assert len(ids) > 3, "the demo's vocabulary was to split this character"
    assert [piece for piece in pieces if piece] == ["a", "😀", "b"]
    assert rest == ""


def test_a_character_that_is_never_completed(demo):
    ids = demo.encode("😀")
    pieces, rest = stream(demo, ids[:-1])
    assert "".join(pieces) == ""
    assert rest == "\ufffd"
    pieces, _ = stream(demo, [*ids[:-1], demo.special["<turn|>"]])
    assert pieces[-1] == "\ufffd<turn|>"


# ------------------------------------------------------------------------------------------------ scores in GGUF


def test_gemma3_loads_quickly(gemma3_file):
    begin = time.process_time()
    tokenizer = load_tokenizer(gemma3_file.parent)
    assert time.process_time() - begin < 4
    assert (tokenizer.size, tokenizer.bos_text) == (262144, "<bos>")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", ["Hello", "▁world"]),
        (" Hello", ["▁Hello"]),
        ("a\n\n\nb", ["a", "\n\n\n", "b"]),
        ("x    y", ["x", "    ", "y"]),
        ("2026", ["2", "0", "2", "6"]),
        ("\u1680", ["<0xE1>", "<0x9A>", "<0x80>"]),
        ("<start_of_turn>user", ["<start_of_turn>", "user"]),
        ("<table>", ["<table>"]),
    ],
)
def test_gemma3_known_tokens(gemma3, text, tokens):
    assert [gemma3.token_of(number) for number in gemma3.encode(text)] == tokens


@pytest.mark.parametrize("text", TEXTS)
def test_gemma3_gives_the_text_back(gemma3, text):
    ids = gemma3.encode(text)
    pieces, rest = stream(gemma3, ids)
    assert gemma3.decode(ids) == text
    assert "".join(pieces) + rest == text


def test_only_control_tokens_are_special(gemma3):
    assert {"<eos>", "<start_of_turn>", "<end_of_turn>"} <= set(gemma3.special)
    assert not {"<table>", "\n\n", "Hello"} & set(gemma3.special)


def sentencepiece(text, scores):
    """The plain rule: join the neighbours whose union scores best, leftmost first, until none is a piece."""
    pieces = list(text)
    while True:
        found = [
            (-scores[left + right], index)
            for index, (left, right) in enumerate(itertools.pairwise(pieces))
            if left + right in scores
        ]
        if not found:
            return pieces
        _, index = min(found)
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]


def test_merges_mean_what_scores_mean(tmp_path):
    rng = random.Random(3)
    pieces = list(dict.fromkeys("abcd" + "".join(rng.choices("abcd", k=400))))
    while len(pieces) < 120:  # every piece is a union of two, as in trained vocabularies
        union = rng.choice(pieces) + rng.choice(pieces)
        if union not in pieces and len(union) <= 8:
            pieces.append(union)
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    types = [NORMAL] * len(pieces)
    assert all(left + right in scores for left, right in merges_from_scores(pieces, types, list(scores.values())))
    file = write_vocabulary(tmp_path / "v.gguf", pieces, types, scores=list(scores.values()))
    tokenizer = load_tokenizer(file)
    for _ in range(300):
        text = "".join(rng.choices("abcd", k=rng.randrange(1, 40)))
        assert [tokenizer.token_of(number) for number in tokenizer.encode(text)] == sentencepiece(text, scores)


# ------------------------------------------------------------------------------------------------ merges in GGUF


def write_vocabulary(file, tokens, types, *, scores=None, merges=None, kind=None, prefix=False, template=None):
    """A GGUF file with a vocabulary and no tensors."""
    writer = gguf.GGUFWriter(file, "gemma4")
    writer.add_tokenizer_model(kind or ("llama" if merges is None else "gemma4"))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_add_space_prefix(prefix)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges is not None:
        writer.add_token_merges(merges)
    if "<bos>" in tokens:
        writer.add_bos_token_id(tokens.index("<bos>"))
    if template:
        writer.add_chat_template(template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


@pytest.fixture
def gemma4_parts():
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
    runs = ["\n", "\n\n"]
    letters = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc"]
    tokens = [*special, *runs, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = [CONTROL] * 6 + [USER_DEFINED] * 2 + [BYTE] * 256 + [NORMAL] * len(letters)
    return tokens, types, ["a b", "▁ ab", "▁ a", "b c"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", ["ab", "c"]),
        (" abc", ["▁ab", "c"]),
        ("a bc", ["a", "▁", "bc"]),
        ("<|turn>a<turn|>\n", ["<|turn>", "a", "<turn|>", "\n"]),
        ("a\n\n\nb", ["a", "\n\n", "\n", "b"]),
        ("é", ["<0xC3>", "<0xA9>"]),
    ],
)
def test_gemma4_vocabulary(tmp_path, gemma4_parts, text, expected):
    tokens, types, merges = gemma4_parts
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "m.gguf", tokens, types, merges=merges))
    ids = tokenizer.encode(text)
    assert [tokenizer.token_of(number) for number in ids] == expected
    assert tokenizer.decode(ids) == text
    assert tokenizer.bos_text == "<bos>"


def test_the_media_projector_is_no_vocabulary(tmp_path, gemma4_parts):
    tokens, types, merges = gemma4_parts
    (tmp_path / "a-mmproj.gguf").write_bytes(b"GGUF")
    write_vocabulary(tmp_path / "model.gguf", tokens, types, merges=merges)
    assert load_tokenizer(tmp_path).size == len(tokens)


# ------------------------------------------------------------------------------------------------ errors


def test_a_folder_without_vocabulary(tmp_path):
    with pytest.raises(BadCheckpoint, match=r"neither tokenizer\.json nor a \.gguf"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"type": "Nothing"}}'])
def test_a_broken_tokenizer_json(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(BadCheckpoint, match=r"tokenizer\.json is not a tokenizer.*Fetch"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GGUF", b"not a model at all, but long enough", b"GGUF\x09" + b"\0" * 30])
def test_a_file_that_is_no_gguf(tmp_path, data):
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"m\.gguf is not a whole GGUF file"):
        load_tokenizer(tmp_path / "m.gguf")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_gguf(tmp_path, gemma4_parts, part):
    tokens, types, merges = gemma4_parts
    file = write_vocabulary(tmp_path / "m.gguf", tokens, types, merges=merges)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    with pytest.raises(BadCheckpoint, match="whole GGUF file"):
        load_tokenizer(file)


def test_a_missing_file(tmp_path):
    with pytest.raises(BadCheckpoint, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")


def test_vocabularies_of_other_kinds(tmp_path, gemma4_parts):
    tokens, types, merges = gemma4_parts
    file = tmp_path / "m.gguf"
    write_vocabulary(file, tokens, types, merges=merges, kind="gpt2")
    with pytest.raises(BadCheckpoint, match="kind is 'gpt2'"):
        load_tokenizer(file)
    write_vocabulary(file, tokens, types, merges=merges, prefix=True)
    with pytest.raises(BadCheckpoint, match="space before every text"):
        load_tokenizer(file)
    write_vocabulary(file, tokens, types)
    with pytest.raises(BadCheckpoint, match=r"lacks 'tokenizer\.ggml\.scores'"):
        load_tokenizer(file)
    write_vocabulary(file, tokens, types, scores=[0.0])
    with pytest.raises(BadCheckpoint, match="cannot be used"):
        load_tokenizer(file)
    write_vocabulary(file, tokens, types, merges=["a z"])
    with pytest.raises(BadCheckpoint, match="cannot be used"):
        load_tokenizer(file)
