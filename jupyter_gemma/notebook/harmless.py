"""Answers that load nothing: Markdown of a model with its pictures and raw HTML made into text.

A model may repeat what stands in a web page or a file, so its Markdown is foreign input: a picture with a remote
address would tell that address what was asked. Code blocks stay as they are, where it is certain that they are
code blocks; anywhere else ``![`` loses its mark and ``<`` before a tag name gets a space, which ends the tag in
Markdown and HTML alike and hardly changes ``a <b`` in a formula.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_FENCE = re.compile(r"(?P<mark>`{3,}|~{3,})[^`]*$")
_CLOSING = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})\s*$")
# Fences in lists and quotes end with them, and formulas may swallow a fence: after these nothing is certain.
_UNCERTAIN = re.compile(r"^[\s>*+\-\d.)]+(```|~~~)|\$\$|\\\[|\\begin\b")
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def harmless(markdown: str) -> str:
    """``markdown`` without pictures and raw HTML; links stay, they load only when clicked."""
    return "\n".join(_lines(markdown.split("\n")))


def _lines(lines: list[str]) -> Iterator[str]:
    fence, certain = "", True
    for line in lines:
        if fence:
            closing = _CLOSING.match(line)
            fence = "" if closing and closing["mark"].startswith(fence) else fence
            yield line
            continue
        certain = certain and not _UNCERTAIN.search(line) and line.count("$") % 2 == 0
        opening = _FENCE.match(line)
        if opening and certain:
            fence = opening["mark"]
            yield line
        else:
            yield _TAG.sub("< ", line.replace("![", "["))
