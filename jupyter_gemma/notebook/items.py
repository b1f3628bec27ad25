"""What an object becomes: its parts, a note on what they hold, and the bounds they keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jupyter_gemma.errors import RequestError
from jupyter_gemma.types import Part, TextPart

MEBIBYTE = 1024 * 1024
# How files of these types begin.
MIME_TYPES = {b"\xff\xd8": "image/jpeg", b"GIF8": "image/gif", b"OggS": "audio/ogg", b"fLaC": "audio/flac"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an object may be sent.

    ``rows`` of a table are sent cell by cell; 0: no cell value leaves the frame, only what sums it up. ``columns`` are
    described one by one. Text is cut after ``chars`` characters, pictures are shrunk to ``side`` pixels, clips longer
    than ``seconds`` and files above ``file_bytes`` are refused. A table takes at most ``tokens``, by the estimate of
    :func:`tokens_of`. ``table_form`` and ``plot_text`` (axis texts beside a plot) come from the model's card.
    """

    rows: int = 5
    columns: int = 60
    chars: int = 20_000
    side: int = 2048
    seconds: float = 600.0
    file_bytes: int = 64 * MEBIBYTE
    tokens: int = 4_000
    table_form: Literal["digest", "columns"] = "digest"
    plot_text: bool = True


@dataclass(frozen=True, slots=True)
class Item:
    """One object as parts. ``note`` says to a person what was sent: "table 1000 × 5", "picture 640 × 480"."""

    parts: tuple[Part, ...]
    note: str = ""


def read_file(path: Any, limits: Limits, error: type[RequestError], smaller: str) -> bytes:
    """The bytes of a file.

    Raises:
        error: it has more than ``limits.file_bytes`` (``smaller`` is the way out) or cannot be read.
    """
    try:
        if path.stat().st_size > limits.file_bytes:
            raise error(f"{path} has more than {limits.file_bytes} bytes.", smaller)
        return bytes(path.read_bytes())
    except OSError as problem:
        raise error(f"{path} cannot be read: {problem.strerror}.", "Check the path.") from problem


def text_item(text: str, note: str = "") -> Item:
    """``text`` as an item of one part."""
    return Item((TextPart(text),), note)


def mime_of(data: bytes, usual: str) -> str:
    """The MIME type of a picture or sound file; ``usual`` where its beginning tells none."""
    return next((mime for magic, mime in MIME_TYPES.items() if data.startswith(magic)), usual)


def cut(text: str, chars: int) -> str:
    """``text``, or its beginning and a line that says how much is missing."""
    if len(text) <= chars:
        return text
    return f"{text[:chars]}\n… {len(text) - chars} more characters"


def tokens_of(text: str) -> int:
    """About how many tokens ``text`` takes, rather too many: a digit or sign is one, three letters are one."""
    letters = sum(sign.isascii() and sign.isalpha() for sign in text)
    blanks = sum(sign == " " for sign in text)
    foreign = sum(not sign.isascii() for sign in text)
    return -(-letters // 3) + foreign + len(text) - letters - blanks - foreign
