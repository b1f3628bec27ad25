"""Dispatch by type name, users' converters, text values, filling and joining."""

import subprocess
import sys
from collections import OrderedDict
from fractions import Fraction

import pytest

from jupyter_gemma.errors import BadOption, RequestError
from jupyter_gemma.notebook import context
from jupyter_gemma.notebook.context import attach, compose, fill, item_of, parts_of, register
from jupyter_gemma.notebook.items import Item, Limits, text_item
from jupyter_gemma.types import ImagePart, TextPart


def text(value, limits=None) -> str:
    (part,) = parts_of(value, limits)
    return part.text


def an_example(x):
    return x + 1


def test_text_values():
    assert text("as {it} is\n") == "as {it} is\n"
    assert text(12) == "12"
    assert text({"b": 1, "a": [1, 2]}) == "{'b': 1, 'a': [1, 2]}"
    assert text(OrderedDict(a=1)).startswith("OrderedDict")
    assert text(an_example) == "def an_example(x):\n    return x + 1\n"
    assert text(len) == str(len)
    assert text(b"\x00\x01") == "b'\\x00\\x01'"


def test_collections_are_bounded():
    sent = text(list(range(100_000)), Limits(chars=500))
    assert len(sent) < 600
    assert "more characters" in sent


def test_exceptions_come_with_their_traceback():
    try:
        an_example("a")
    except TypeError as error:
        sent = text(error)
    assert "Traceback" in sent
    assert "return x + 1" in sent
    assert "TypeError" in sent


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(context, "_REGISTERED", {})


def test_users_register_their_types(registered):
    register(Fraction, lambda value, limits: f"{value.numerator} over {value.denominator}")
    assert text(Fraction(1, 3)) == "1 over 3"
    register("fractions.Fraction", lambda value, limits: "by name")
    context._REGISTERED.pop(Fraction)
    assert text(Fraction(1, 3)) == "by name"
    register(int, lambda value, limits: [TextPart("a"), ImagePart(b"x")])
    assert parts_of(True) == (TextPart("a"), ImagePart(b"x"))


def test_repr_llm_is_honoured():
    class Mine:
        def _repr_llm_(self):
            return "for the model"

    assert text(Mine()) == "for the model"


def test_fill_puts_values_where_they_stand():
    pieces = fill("a {n} b {{n}} {m}", {"n": 1}, {"n"})
    assert [name for name, _ in pieces] == ["", "n", ""]
    assert compose(item_of(value, Limits()) for _, value in pieces) == (TextPart("a 1 b {n} {m}"),)


def test_an_expression_that_raises_is_shown():
    with pytest.raises(RequestError, match=r"\{1/n\} raised ZeroDivisionError: division by zero") as caught:
        fill("say {1/n}", {"n": 0}, {"n"})
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_functions_and_comprehensions_see_the_scope():
    scope = {"k": 3, "values": [1, 2]}
    ((_, value),) = fill("{[k * v for v in values]}", scope, set(scope))
    assert value == [3, 6]


def test_compose_keeps_media_in_place_and_gives_blocks_their_lines():
    table = text_item("rows 2\na: text 1 unique", "table 2 × 1")
    picture = Item((ImagePart(b"x"),), "picture")
    assert compose([table, text_item(" How many? ")]) == (TextPart("rows 2\na: text 1 unique\nHow many?"),)
    assert compose([text_item("See "), picture, text_item(" and "), picture]) == (
        TextPart("See"),
        ImagePart(b"x"),
        TextPart("and"),
        ImagePart(b"x"),
    )
    assert compose([text_item("x is "), text_item("5", "int"), text_item(", fine")]) == (TextPart("x is 5, fine"),)


def test_attach():
    scope = {"a": 1, "b": {"k,": 2}}
    assert attach('a,b["k,"],max(a, 5)', scope, set(scope)) == [("a", 1), ("b['k,']", 2), ("max(a, 5)", 5)]
    with pytest.raises(BadOption, match=r"no variable 'frme'. Did you mean frame"):
        attach("frme", {"frame": 1}, {"frame"})
    with pytest.raises(BadOption, match="not a list of Python expressions"):
        attach("a b", scope, set(scope))


def test_text_loads_no_heavy_library():
    code = (
        "import sys; from jupyter_gemma.notebook.context import parts_of; parts_of([1]); parts_of('x'); "
        "print([m for m in ('numpy', 'pandas', 'matplotlib', 'PIL', 'httpx', 'torch', 'librosa') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
