"""``/verify``: whether a kept answer comes again."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from jupyter_gemma.notebook.answer import Answer


def compare(kept: Answer, again: Answer) -> str:
    """In words: the same, or what differs in the text and in what made it."""
    if kept.text == again.text:
        return "The answer is the same."
    lines = difflib.unified_diff(kept.text.splitlines(), again.text.splitlines(), "kept", "again", lineterm="", n=1)
    return "\n".join([f"The answer differs. {_causes(kept.record, again.record)}", *lines])


def _causes(kept: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    names = ("digest", "revision", "quantization", "device", "sampling", "versions")
    changed = [name for name in names if kept.get(name) != again.get(name)]
    if changed:
        return "Changed since: " + ", ".join(f"{name} {kept.get(name)} → {again.get(name)}" for name in changed)
    return "Model, sampling, inputs and versions are the same; only one device and build gives the same answer always."
