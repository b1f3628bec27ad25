"""Text to token ids and back, from ``tokenizer.json`` or from the vocabulary inside a GGUF file.

Nobody here adds ``<bos>``: templates write it (see :mod:`jupyter_gemma.engine.template`).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.gguf_head import read_head

SPACE = "\u2581"
_BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")
# Token types of tokenizer.ggml.token_type (llama.h, enum llama_token_type).
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


class Tokenizer:
    """A vocabulary with its rules.

    ``size`` counts all tokens, ``special`` maps the text of each control token ("<|turn>") to its id,
    ``bos_text`` is the text of the token that begins a sequence ("" where there is none).
    """

    def __init__(self, core: tokenizers.Tokenizer, bos_text: str) -> None:
        core.no_truncation()
        core.no_padding()
        added = core.get_added_tokens_decoder()
        self._core = core
        self._byte_level = _byte_letters() if isinstance(core.decoder, decoders.ByteLevel) else None
        self._added = {number: token.content for number, token in added.items()}
        self.special: Mapping[str, int] = {token.content: number for number, token in added.items() if token.special}
        self._special_ids = frozenset(self.special.values())
        self.bos_text = bos_text
        self.size: int = core.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``. Texts of special tokens become those tokens; nothing is added before or after."""
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD."""
        kept = (number for number in ids if not (skip_special and number in self._special_ids))
        return b"".join(map(self.bytes_of, kept)).decode("utf-8", "replace")

    def bytes_of(self, number: int) -> bytes:
        """What one token stands for: UTF-8, possibly a part of a character; b"" for an id without a token."""
        token = self._core.id_to_token(number)
        if token is None:
            return b""
        if self._byte_level is not None:
            return token.encode() if number in self._added else bytes(self._byte_level[letter] for letter in token)
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()

    def id_of(self, token: str) -> int | None:
        """The id of a token text, or None."""
        number: int | None = self._core.token_to_id(token)
        return number

    def token_of(self, number: int) -> str:
        """The token as it stands in the vocabulary; "" for an id without a token."""
        return self._core.id_to_token(number) or ""

    def stream(self) -> Detokenizer:
        """A fresh incremental decoder."""
        return Detokenizer(self)


class Detokenizer:
    """Ids to text one by one: holds back the bytes of a character until it is complete.

    Special tokens come out as their text, so that the output parser sees tags.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, number: int) -> str:
        """The text that this id completes; "" while a character is incomplete."""
        return self._decoder.decode(self._tokenizer.bytes_of(number))

    def flush(self) -> str:
        """What is left: "" or U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a folder with ``tokenizer.json`` or a .gguf file, or that file itself.

    Raises:
        BadCheckpoint: no vocabulary there, or one that is cut short, inconsistent or of another kind.
    """
    if (path / "tokenizer.json").is_file():
        return _from_json(path / "tokenizer.json")
    file = gguf_file(path)
    if file is None:
        raise BadCheckpoint(
            f"{path} has neither tokenizer.json nor a .gguf file.", "Fetch the checkpoint with its tokenizer."
        )
    return _from_gguf(file, read_head(file).metadata)


def gguf_file(path: Path) -> Path | None:
    """The GGUF file with the vocabulary: ``path`` itself or the one in the folder that is no media projector."""
    if path.is_file():
        return path
    files = sorted(file for file in path.glob("*.gguf") if "mmproj" not in file.name.lower())
    return files[0] if files else None


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in ``file``; {} where there is no such file.

    Raises:
        BadCheckpoint: not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{file} is not JSON: {error}.", "Fetch the file again.") from error
    if not isinstance(found, dict):
        raise BadCheckpoint(f"{file} holds no JSON object.", "Fetch the file again.")
    return found


def _from_json(file: Path) -> Tokenizer:
    try:
        core = tokenizers.Tokenizer.from_str(file.read_text("utf-8"))
    except Exception as error:  # the library raises bare Exception for a file it cannot read
        raise BadCheckpoint(f"{file} is not a tokenizer: {error}.", "Fetch the file again.") from error
    bos = read_json(file.with_name("tokenizer_config.json")).get("bos_token") or "<bos>"
    text = bos["content"] if isinstance(bos, dict) else bos
    return Tokenizer(core, text if core.token_to_id(text) is not None else "")


def _from_gguf(file: Path, head: Mapping[str, Any]) -> Tokenizer:
    try:
        tokens = head["tokenizer.ggml.tokens"]
        core = _bpe(tokens, head["tokenizer.ggml.token_type"], _gguf_merges(head))
        bos = head.get("tokenizer.ggml.bos_token_id")
        return Tokenizer(core, "" if bos is None else tokens[bos])
    except KeyError as error:
        raise BadCheckpoint(f"{file} lacks {error}.", "Use a GGUF file of a whole Gemma model.") from None
    except Exception as error:  # as above
        raise BadCheckpoint(f"The vocabulary in {file} cannot be used: {error}", "Fetch the file again.") from error


def _gguf_merges(head: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Merges, best first. ``llama`` is a SentencePiece vocabulary with scores, ``gemma4`` a list of merges."""
    kind = head["tokenizer.ggml.model"]
    if head.get("tokenizer.ggml.add_space_prefix", kind == "llama"):
        raise ValueError("it puts a space before every text, which Gemma's vocabularies never do.")
    if kind == "llama":
        return merges_from_scores(
            head["tokenizer.ggml.tokens"], head["tokenizer.ggml.token_type"], head["tokenizer.ggml.scores"]
        )
    if kind == "gemma4":
        pairs = (line.partition(" ") for line in head["tokenizer.ggml.merges"])
        return [(left, right) for left, _, right in pairs]
    raise ValueError(f"its kind is {kind!r}; only 'llama' with scores and 'gemma4' with merges are known.")


def merges_from_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that make BPE give what SentencePiece gives from scores.

    SentencePiece joins, again and again, the neighbours whose union has the best score; so each way to split
    a piece into two pieces is a merge, ranked by the score of the piece.
    """
    normal = {token: score for token, kind, score in zip(tokens, types, scores, strict=True) if kind == _NORMAL}
    best_first = sorted(normal, key=normal.__getitem__, reverse=True)
    return [
        (piece[:cut], piece[cut:])
        for piece in best_first
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]


def _bpe(tokens: Sequence[str], types: Sequence[int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = "<unk>" if "<unk>" in vocabulary else None
    core = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    )
    core.normalizer = normalizers.Replace(" ", SPACE)
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    by_type = list(zip(tokens, types, strict=True))
    core.add_special_tokens([_whole(token, True) for token, kind in by_type if kind == _CONTROL])
    core.add_tokens([_whole(token, False) for token, kind in by_type if kind == _USER_DEFINED])
    return core


def _whole(token: str, special: bool) -> AddedToken:
    return AddedToken(token, normalized=False, special=special)


def _byte_letters() -> dict[str, int]:
    """Letter -> byte of byte-level BPE (GPT-2): bytes that print stand for themselves, the rest from U+0100 on."""
    prints = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in prints]
    return {chr(byte): byte for byte in prints} | {chr(256 + index): byte for index, byte in enumerate(rest)}
