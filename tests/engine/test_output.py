"""The output parser: whatever the pieces in which text arrives, the same chunks come out."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jupyter_gemma.engine.output import OutputParser, parse_call
from jupyter_gemma.types import ToolCall

CALL = '<|tool_call>call:weather{days:2,place:<|"|>Tokyo, {JP}<|"|>}<tool_call|>'
WEATHER = ToolCall("weather", {"days": 2, "place": "Tokyo, {JP}"}, "call_1")


def parse(pieces, stop=(), tagged=True):
    """(text, thinking, calls, stopped), deltas joined."""
    parser = OutputParser(stop, tagged)
    chunks = [chunk for piece in pieces for chunk in parser.feed(piece)] + parser.finish()
    assert all(chunk.text or chunk.thinking or chunk.tool_call for chunk in chunks), "an empty chunk"
    calls = [chunk.tool_call for chunk in chunks if chunk.tool_call]
    text = "".join(chunk.text for chunk in chunks)
    return text, "".join(chunk.thinking for chunk in chunks), calls, parser.stopped


def every_split(text):
    """Whole, in two at every place, in three at some, one character at a time."""
    yield [text]
    yield list(text)
    for cut in range(len(text) + 1):
        yield [text[:cut], text[cut:]]
        yield [text[:cut], text[cut : cut + 3], text[cut + 3 :]]


CASES = {
    "plain": ("A plain answer, 1 < 2 <b>bold</b>.", (), ("A plain answer, 1 < 2 <b>bold</b>.", "", [], False)),
    "thinking": (
        "<|channel>thought\nLet me <see>.\n<channel|>It rises.<turn|>",
        (),
        ("It rises.", "Let me <see>.\n", [], True),
    ),
    "empty thought": ("<|channel>thought\n<channel|>Yes", (), ("Yes", "", [], False)),
    "thought without a line": ("<|channel>thought<channel|>Yes", (), ("Yes", "", [], False)),
    "another header": ("<|channel>thorough<channel|>Yes", (), ("Yes", "thorough", [], False)),
    "thought in the middle": ("One <|channel>thought\nhm<channel|>two", (), ("One two", "hm", [], False)),
    "thought without end": ("<|channel>thought\nand so on", (), ("", "and so on", [], False)),
    "turn ends in a thought": ("<|channel>thought\nhm<turn|>more", (), ("", "hm", [], True)),
    "stray ends": ("a<channel|>b<tool_call|>c", (), ("abc", "", [], False)),
    "call": (f"Let me look.{CALL}<|tool_response>never", (), ("Let me look.", "", [WEATHER], True)),
    "two calls": (
        CALL + "<|tool_call>call:now{}<tool_call|>",
        (),
        ("", "", [WEATHER, ToolCall("now", {}, "call_2")], False),
    ),
    "call in a thought": (f"<|channel>thought\nhm{CALL}ok", (), ("ok", "hm", [WEATHER], False)),
    "call that the turn ends": (CALL.replace("<tool_call|>", "<turn|>"), (), ("", "", [WEATHER], True)),
    "call without end": (CALL.removesuffix("<tool_call|>"), (), ("", "", [WEATHER], False)),
    "malformed call": ("<|tool_call>call:f{a:1<tool_call|>!", (), ("call:f{a:1!", "", [], False)),
    "call cut short": ('<|tool_call>call:f{a:<|"|>x', (), ('call:f{a:<|"|>x', "", [], False)),
    "gemma 3": ("Hello.<end_of_turn>\n<start_of_turn>user", (), ("Hello.", "", [], True)),
    "eos": ("Hello.<eos>", (), ("Hello.", "", [], True)),
    "noise": ("<bos>He<pad>llo", (), ("Hello", "", [], False)),
    "almost a tag": ("<|chan <channel <|tool_", (), ("<|chan <channel <|tool_", "", [], False)),
    "stop": ("one\ntwo\nthree", ("\nth", "nothing"), ("one\ntwo", "", [], True)),
    "stop, first complete wins": ("xabcdx", ("abcd", "bc"), ("xa", "", [], True)),
    "stop, longest at one place": ("xabc", ("ab", "abc"), ("x", "", [], True)),
    "almost a stop": ("END of EN", ("END!",), ("END of EN", "", [], False)),
    "stop, overlapping itself": ("aaab", ("aab",), ("a", "", [], True)),
    "stop is not for thoughts": ("<|channel>thought\nSTOP<channel|>go", ("STOP",), ("go", "STOP", [], False)),
    "stop around a tag": ("ST<|channel>thought\nx<channel|>OP", ("STOP",), ("STOP", "x", [], False)),
    "stop like a tag": ("<|channel>thought\nx<channel|>a<b", ("<",), ("a", "x", [], True)),
    "stop, then a call": (f"END{CALL}", ("END",), ("", "", [], True)),
    "stop in a malformed call": ("<|tool_call>oh STOP no<tool_call|>x", ("STOP",), ("oh ", "", [], True)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_split_gives_the_same(name):
    text, stop, expected = CASES[name]
    for pieces in every_split(text):
        assert parse(pieces, stop) == expected, pieces


ANY_TAG = r"<\|?(?:channel|tool_call|turn|bos|pad|think|eos)\|?>"
# Texts of these hold everything that is nearly a tag.
bits = st.lists(
    st.sampled_from(["a", " ", "\n", "<", ">", "|", "<|", "|>", "<|chan", "nel>", "thought", "call:", "{", "é", "😀"])
)
plain = bits.map("".join)
calls = st.builds(
    lambda name, n: (f"<|tool_call>call:{name}{{n:{n}}}<tool_call|>", (name, {"n": n})),
    st.sampled_from("fg"),
    st.integers(),
)
parts = st.one_of(
    st.tuples(st.just("text"), plain),
    st.tuples(st.just("thinking"), plain),
    st.tuples(st.just("call"), calls),
    st.tuples(st.just("noise"), st.sampled_from(["<bos>", "<pad>", "<|think|>"])),
)


def written(kind, part):
    if kind == "thinking":
        return f"<|channel>thought\n{part}<channel|>"
    return part[0] if kind == "call" else part


@given(st.lists(parts), st.sampled_from(["", "<turn|>", "<eos>never"]), st.data())
def test_nothing_leaks_and_nothing_is_lost(tagged, end, data):
    """Any split of any text with tags gives back what was put between the tags, in its place and nowhere else."""
    text = "".join(written(kind, part) for kind, part in tagged)
    wanted = sum({"thinking": 2, "call": 2, "noise": 1}.get(kind, 0) for kind, _ in tagged)
    assume(len(re.findall(ANY_TAG, text)) == wanted)  # no tag made of two neighbours
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text + end)), max_size=8)))
    pieces = [(text + end)[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
    found, thought, called, stopped = parse(pieces)
    assert found == "".join(part for kind, part in tagged if kind == "text")
    assert thought == "".join(part for kind, part in tagged if kind == "thinking")
    assert [(call.name, call.arguments) for call in called] == [part[1] for kind, part in tagged if kind == "call"]
    assert stopped == (end != "")


@given(
    st.text(alphabet="ab<", max_size=30),
    st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_the_stop_string_that_is_complete_first_ends_the_text(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, None], strict=True)]
    expected = text
    for end in range(len(text) + 1):
        ended = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            expected = text[: min(ended)]
            break
    assert parse(pieces, tuple(stops))[0] == expected


def test_text_comes_as_soon_as_it_is_certain():
    parser = OutputParser(("STOP",))
    assert [chunk.text for chunk in parser.feed("Hello <")] == ["Hello "]
    assert parser.feed("|chann") == []
    assert [chunk.text for chunk in parser.feed("y S")] == ["<|channy "]
    assert [chunk.text for chunk in parser.finish()] == ["S"]


def test_nothing_comes_after_a_stop():
    parser = OutputParser(("x",))
    parser.feed("axb")
    assert parser.stopped
    assert parser.feed("c<|tool_call>call:f{}<tool_call|>") == []
    assert parser.finish() == []


def test_a_base_model_has_no_tags():
    text = "<turn|> <|channel>thought\n<eos>"
    assert parse(list(text), tagged=False) == (text, "", [], False)
    assert parse(list("abc"), ("b",), tagged=False) == ("a", "", [], True)


# ------------------------------------------------------------------------------------------------ tool calls


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("{}", {}),
        ('{a:<|"|><|"|>}', {"a": ""}),
        ('{a:<|"|>x:y,{z}]"<|"|>,b:-1.5e3}', {"a": 'x:y,{z}]"', "b": -1500.0}),
        (
            "{t:true,f:false,n:null,i:12345678901234567890}",
            {"t": True, "f": False, "n": None, "i": 12345678901234567890},
        ),
        ('{a:[1,[],{b:<|"|>c<|"|>}],d:{e:{}}}', {"a": [1, [], {"b": "c"}], "d": {"e": {}}}),
        ('{ a : 1 , <|"|>b c<|"|> :\n[ 2 , 3 ] }', {"a": 1, "b c": [2, 3]}),
        ('{a:<|"|>line\nline<|"|>}', {"a": "line\nline"}),
    ],
)
def test_arguments(arguments, expected):
    assert parse_call(f"call:tool.name-1{arguments}") == ("tool.name-1", expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "call:f",
        "call:{}",
        "f{}",
        "call:f{",
        "call:f{a}",
        "call:f{a:}",
        "call:f{a:1",
        "call:f{a:1,}",
        "call:f{a:1 b:2}",
        "call:f{a:word}",
        "call:f{a:NaN}",
        'call:f{a:<|"|>open}',
        "call:f{a:[1,2}",
        "call:f{} and more",
        "call:f{:1}",
        "call:f" + "{a:" * 9 + "1",
    ],
)
def test_malformed_calls(text):
    with pytest.raises(ValueError):
        parse_call(text)


def test_absurd_nesting_comes_as_text():
    call = "call:f{a:" + "[" * 100_000
    assert parse([f"<|tool_call>{call}<tool_call|>"]) == (call, "", [], False)
