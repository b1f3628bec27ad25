"""The exception tree: its docstring is true, and an error survives the way over the wire."""

import re

import pytest

from jupyter_gemma import errors
from jupyter_gemma.errors import BadImage, GemmaError, NotAuthorized, RequestError, ServerBusy, UnknownModel, from_wire

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, GemmaError)]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def documented() -> dict[str, tuple[str, int | None]]:
    """Name -> (parent, status) as drawn in the module's docstring."""
    found: dict[str, tuple[str, int | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w+)\s*(\d{3})?", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else "", int(match[3]) if match[3] else None)
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = documented()
    assert drawn.pop("GemmaError") == ("", None)
    assert drawn == {cls.__name__: (cls.__base__.__name__, cls.status) for cls in CLASSES if cls is not GemmaError}


def test_codes_are_unique_within_the_leaves() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)


@each_class
def test_round_trip(cls: type[GemmaError]) -> None:
    error = cls("The sky is green.", "Look again.")
    assert str(error) == "The sky is green. Look again."
    back = from_wire(cls.status, error.to_wire())
    assert type(back) is cls
    assert (back.message, back.fix) == (error.message, error.fix)


@each_class
def test_wire_form_is_openais(cls: type[GemmaError]) -> None:
    body = cls("x").to_wire()["error"]
    assert {"message", "type", "param", "code"} <= set(body)
    assert body["type"] == ("invalid_request_error" if cls.status < 500 else "server_error")


@pytest.mark.parametrize(
    ("status", "body", "cls", "words"),
    [
        (400, {"error": {"message": "m", "code": "something_else"}}, RequestError, "m"),
        (401, {"error": {"message": "m"}}, NotAuthorized, "m"),
        (403, {"error": {"message": "m", "code": None}}, NotAuthorized, "m"),
        (404, {"error": {"message": "m"}}, UnknownModel, "m"),
        (429, {"error": {"message": "m", "code": "rate_limit_exceeded"}}, ServerBusy, "m"),
        (503, "", ServerBusy, "HTTP status 503"),
        (400, {"error": {"message": "m", "code": "invalid_image", "fix": None}}, BadImage, "m"),
        (500, {"detail": "x"}, GemmaError, "HTTP status 500"),
        (502, "<html>", GemmaError, "HTTP status 502"),
        (418, None, GemmaError, "HTTP status 418"),
        (500, {"error": "text"}, GemmaError, "HTTP status 500"),
    ],
)
def test_foreign_answers(status: int, body: object, cls: type[GemmaError], words: str) -> None:
    error = from_wire(status, body)
    assert type(error) is cls
    assert words in str(error)
