"""The form of an answer on the wire: OpenAI's ``response_format``, and our ``regex`` and ``choice``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jupyter_gemma.errors import BadOption
from jupyter_gemma.types import Constraint
from jupyter_gemma.wire.fields import get, of_kind

KEYS = ("response_format", "regex", "choice")
MAX_PATTERN = 10_000
MAX_CHOICES = 1000


def parse_constraint(body: Mapping[str, Any]) -> Constraint | None:
    """The form that ``body`` asks for, None for any.

    Raises:
        RequestError: a field has the wrong type.
        BadOption: an unknown form, an empty or huge one, or two at once.
    """
    found = [part for part in (_format(body), _regex(body), _choice(body)) if part is not None]
    if len(found) > 1:
        raise BadOption("The answer's form is given twice.", f"Give one of {', '.join(KEYS)}.")
    return found[0] if found else None


def _format(body: Mapping[str, Any]) -> Constraint | None:
    asked: dict[str, Any] = get(body, "response_format", dict, default={"type": "text"})
    kind: str = get(asked, "type", str, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint("json")
    if kind == "json_schema":
        where = "response_format.json_schema"
        return Constraint("json_schema", get(get(asked, "json_schema", dict, "response_format"), "schema", dict, where))
    raise BadOption(f"response_format.type is {kind[:50]!r}.", "It can be text, json_object or json_schema.")


def _regex(body: Mapping[str, Any]) -> Constraint | None:
    pattern: str | None = get(body, "regex", str, default=None)
    if pattern is None:
        return None
    if not 1 <= len(pattern) <= MAX_PATTERN:
        raise BadOption(f"regex has {len(pattern)} characters.", f"Send 1 to {MAX_PATTERN}.")
    return Constraint("regex", pattern)


def _choice(body: Mapping[str, Any]) -> Constraint | None:
    choices: list[Any] | None = get(body, "choice", list, default=None)
    if choices is None:
        return None
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise BadOption(f"choice has {len(choices)} entries.", f"Send 1 to {MAX_CHOICES}.")
    for index, choice in enumerate(choices):
        if not of_kind(choice, str, f"choice[{index}]"):
            raise BadOption(f"choice[{index}] is empty.", "Leave it out.")
    return Constraint("choice", list(choices))


def constraint_json(constraint: Constraint | None) -> dict[str, Any]:
    """The fields of a body that ask for ``constraint``."""
    if constraint is None:
        return {}
    if constraint.kind == "json":
        return {"response_format": {"type": "json_object"}}
    if constraint.kind == "json_schema":
        schema = {"name": "answer", "schema": constraint.value, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {constraint.kind: constraint.value}
