"""Model cards: what the user of a model must know, read from ``card.json`` or made from the files beside it.

Reads JSON and the header of a GGUF file only, so that a list of all models takes milliseconds.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, get_args

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.types import Modality, ModelCard

# The vocabulary stands between the first and the last keys of a GGUF header; 262,144 tokens take about 15 MB.
HEADER_BYTES = 64 * 1024 * 1024


def read_card(name: str, path: Path) -> ModelCard:
    """The card of the model at ``path``: its ``card.json``, else one made from its config or GGUF header.

    Raises:
        BadCheckpoint: the card or config is not JSON, or has a key or value that no card has.
    """
    if path.is_file():
        return _gguf_card(name, [path])
    if (path / "card.json").is_file():
        return replace(_card_from(_read_json(path / "card.json"), path / "card.json"), name=name)
    if (path / "config.json").is_file():
        return _config_card(name, path)
    return _gguf_card(name, sorted(path.glob("*.gguf")))


def write_card(card: ModelCard, folder: Path) -> None:
    """Write ``card`` as ``folder/card.json``."""
    (folder / "card.json").write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BadCheckpoint(f"{path} holds no JSON object.")
    return content


def _card_from(content: Mapping[str, Any], source: Path) -> ModelCard:
    known = {field.name for field in fields(ModelCard)}
    if unknown := sorted(set(content) - known):
        raise BadCheckpoint(f"{source} has unknown keys: {', '.join(unknown)}.")
    for key, good in _card_checks(content).items():
        if not good:
            raise BadCheckpoint(f"{source} has a wrong value for {key}: {content[key]!r}.")
    return ModelCard(**{"name": "", **content, "modalities": tuple(content.get("modalities", ("text",)))})


def _card_checks(content: Mapping[str, Any]) -> dict[str, bool]:
    """Key -> whether its value fits, for the keys that ``content`` has."""
    modalities, prompts = content.get("modalities"), content.get("prompts")
    checks = {key: isinstance(content.get(key), str) for key in ("name", "title", "notice")}
    checks |= {key: isinstance(content.get(key), bool) for key in ("instruct", "turns", "extras")}
    checks["modalities"] = isinstance(modalities, list) and set(modalities) <= set(get_args(Modality))
    checks["prompts"] = isinstance(prompts, dict) and all(isinstance(value, str) for value in prompts.values())
    checks["table_form"] = content.get("table_form") in ("digest", "columns")
    return {key: good for key, good in checks.items() if key in content}


def _config_card(name: str, folder: Path) -> ModelCard:
    config = _read_json(folder / "config.json")
    modalities: list[Modality] = ["text"]
    modalities += ["image"] if config.get("vision_config") else []
    modalities += ["audio"] if config.get("audio_config") else []
    if config.get("model_type") == "gemma4_unified_assistant":
        return ModelCard(name, title=name, instruct=False, notice="It only drafts for another model.")
    return ModelCard(name, title=name, modalities=tuple(modalities), instruct=_has_template(folder))


def _has_template(folder: Path) -> bool:
    """Instruction models bring a chat template, base models bring none."""
    tokenizer = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file():
        return True
    return tokenizer.is_file() and "chat_template" in _read_json(tokenizer)


def _gguf_card(name: str, files: list[Path]) -> ModelCard:
    modalities: list[Modality] = ["text"]
    instruct = False
    for file in files:
        modalities += ["image"] if gguf_string(file, "clip.vision.projector_type") else []
        modalities += ["audio"] if gguf_string(file, "clip.audio.projector_type") else []
        instruct = instruct or bool(gguf_string(file, "tokenizer.chat_template"))
    return ModelCard(name, title=name, modalities=tuple(modalities), instruct=instruct)


def gguf_string(file: Path, key: str) -> str:
    """A string of a GGUF header, "" where the file has no such key.

    A key is written as its length (uint64), its bytes and its type (uint32, 8 for a string). Looking for these bytes
    takes milliseconds; reading the vocabulary before it entry by entry takes seconds.
    """
    mark = struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", 8)
    if file.stat().st_size < len(mark):
        return ""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(mark, 0, HEADER_BYTES) + len(mark)
        if start < len(mark) or content[:4] != b"GGUF" or start + 8 > len(content):
            return ""
        (length,) = struct.unpack_from("<Q", content, start)
        return content[start + 8 : start + 8 + length].decode("utf-8", "replace")
