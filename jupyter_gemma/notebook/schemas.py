"""The form an answer must have: a Python type, a pydantic model or a JSON schema as a constraint and a reader."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jupyter_gemma.errors import BadAnswer, BadOption
from jupyter_gemma.types import Constraint


@dataclass(frozen=True, slots=True)
class Schema:
    """``constraint`` goes along with the question, ``read`` makes a Python value of the answer's text."""

    constraint: Constraint
    read: Callable[[str], Any] = field(repr=False, compare=False)

    @property
    def words(self) -> str:
        """What the model is told, besides being held to it."""
        if self.constraint.kind == "choice":
            return f"Answer with one of: {' | '.join(self.constraint.value)}"
        return f"Answer with JSON only, of this schema: {json.dumps(self.constraint.value, ensure_ascii=False)}"


def schema_of(wanted: Any) -> Schema:
    """The schema that ``wanted`` names.

    Args:
        wanted: a JSON schema as a dict, or a type: a pydantic model, a dataclass, ``list[int]``, ``Literal["a", "b"]``.

    Raises:
        BadOption: pydantic makes no JSON schema of it.
    """
    if isinstance(wanted, Schema):
        return wanted
    if isinstance(wanted, Mapping):
        return Schema(Constraint("json_schema", dict(wanted)), _reader(json.loads))
    choices = typing.get_args(wanted) if typing.get_origin(wanted) is typing.Literal else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        return Schema(Constraint("choice", list(choices)), _choice_reader(choices))
    return _from_type(wanted)


def _from_type(wanted: Any) -> Schema:
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter = TypeAdapter(wanted)
        return Schema(Constraint("json_schema", adapter.json_schema()), _reader(adapter.validate_json))
    except (PydanticUserError, TypeError) as error:
        raise BadOption(
            f"{wanted!r} is no schema.",
            'Use a pydantic model, a type such as list[int] or Literal["a", "b"], or a JSON schema.',
        ) from error


def _reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def reading(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:  # pydantic's ValidationError is one
            raise BadAnswer(
                f"The answer does not fit the schema: {error}", "Look at answer.text; ask again."
            ) from error

    return reading


def _choice_reader(choices: tuple[str, ...]) -> Callable[[str], str]:
    def reading(text: str) -> str:
        if text.strip() not in choices:
            raise BadAnswer(f"The answer {text[:80]!r} is none of the choices.", "Look at answer.text; ask again.")
        return text.strip()

    return reading


def schema_from_source(source: str, scope: Mapping[str, Any]) -> Schema:
    """The schema that ``--schema`` names: JSON, a name among the user's variables, or a type expression.

    Raises:
        BadOption: it is none of them.
    """
    try:
        wanted = json.loads(source)
    except ValueError:
        wanted = _evaluate(source, scope)
    return schema_of(wanted)


def _evaluate(source: str, scope: Mapping[str, Any]) -> Any:
    names = {name: getattr(typing, name) for name in ("Literal", "Optional", "Union", "Any", "Annotated", "TypedDict")}
    try:
        return eval(source, {**names, **scope})  # noqa: S307 the user's own code
    except Exception as error:
        raise BadOption(
            f"--schema {source} is no schema: {type(error).__name__}: {error}.",
            'Write a name, JSON without blanks or in quotes, list[int] or Literal["a","b"].',
        ) from error
