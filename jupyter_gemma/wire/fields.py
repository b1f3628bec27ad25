"""Single fields of a JSON body: looked up, checked for type and range, and named when they are wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from jupyter_gemma.errors import BadOption, RequestError

# Option -> kind, lowest and highest value.
NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "top_k": (int, 0, 2**31),
    "repetition_penalty": (float, 0.01, 100),
    "seed": (int, -(2**63), 2**64 - 1),
    "max_tokens": (int, 1, 2**31),
    "max_completion_tokens": (int, 1, 2**31),
    "image_tokens": (int, 1, 2**16),
    "top_logprobs": (int, 0, 20),
    "n": (int, 1, 16),
}
KIND_NAMES: Mapping[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


def get(source: Mapping[str, Any], key: str, kind: type, where: str = "", default: Any = ...) -> Any:
    """``source[key]``, of type ``kind``; absent or null gives ``default``.

    Raises:
        RequestError: it has another type, or is absent and there is no default.
    """
    name = f"{where}.{key}" if where else key
    value = source.get(key)
    if value is None:
        if default is ...:
            raise RequestError(f"{name} is missing.", f"It must be {KIND_NAMES[kind]}.")
        return default
    return of_kind(value, kind, name)


def of_kind(value: Any, kind: type, name: str) -> Any:
    """``value``, if it is a ``kind``; whole numbers are numbers, true and false are not.

    Raises:
        RequestError: it is not.
    """
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise RequestError(f"{name} must be {KIND_NAMES[kind]}, not {type(value).__name__}.")
    return value


def number(body: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """The option ``key`` of :data:`NUMBERS`.

    Raises:
        RequestError: it is no number.
        BadOption: it is out of range.
    """
    kind, low, high = NUMBERS[key]
    value = get(body, key, kind, default=default)
    if value is not None and not low <= value <= high:
        raise BadOption(f"{key} is {value}.", f"It must be from {low:g} to {high:g}.")
    return value


def check_names(body: Mapping[str, Any], known: Iterable[str], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what is not ``known``, unless it is null or has a value of ``neutral``, which asks for nothing.

    Raises:
        BadOption: with the nearest known name.
    """
    known = set(known)
    for key, value in body.items():
        if value is None or key in known or value in neutral.get(key, ()):
            continue
        if key in neutral:
            raise BadOption(f"The option {key} cannot be set to {str(value)[:50]!r} here.", "Leave it out.")
        near = difflib.get_close_matches(key, known, n=1)
        raise BadOption(f"There is no option {key[:50]!r}.", f"Did you mean {near[0]}?" if near else "Leave it out.")
