"""A question and its answer, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jupyter_gemma.notebook.schemas import Schema
from jupyter_gemma.types import FinishReason, Part, Request, Usage


@dataclass(frozen=True, slots=True)
class ToolRun:
    """One call of a tool by the model: with what, and what came back (the words of its exception, if it raised)."""

    name: str
    arguments: Mapping[str, Any]
    result: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """What a model answered, and what it was sent.

    ``parts`` are the parts of the question; ``sent`` says in words what its objects became, ``thumbnails`` are small
    PNGs of its pictures. ``finish`` "cancelled" marks an answer that was stopped, "length" one that was cut.
    ``record`` says what made the answer (model, sampling, inputs, versions), ``cached`` when, if it was kept from then.
    ``trace`` are the calls of tools on the way.
    """

    text: str = ""
    thinking: str = ""
    usage: Usage = field(default_factory=Usage)
    model: str = ""
    finish: FinishReason | None = None
    parts: tuple[Part, ...] = ()
    sent: tuple[str, ...] = ()
    thumbnails: tuple[bytes, ...] = field(default=(), repr=False)
    notice: str = ""
    format: str = "markdown"
    schema: Schema | None = field(default=None, repr=False)
    trace: tuple[ToolRun, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cached: str = ""
    request: Request | None = field(default=None, repr=False)
    shown_in: int | None = field(default=None, repr=False)
