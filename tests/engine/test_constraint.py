"""Answers have the form that was asked for, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import threading

import pytest
import torch

from jupyter_gemma.engine.constraint import GrammarMaker
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.types import Constraint, Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
ODD = ['say "yes"', "no\nway", "日本", "<b>"]


def told(engine, request):
    chunks = list(engine.stream(request, threading.Event()))
    return "".join(chunk.text for chunk in chunks), chunks[-1].finish


def sampled(seed, max_tokens=400):
    return Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=seed, max_tokens=max_tokens)


@pytest.mark.parametrize("seed", range(4))
def test_a_schema(engine, ask, seed):
    text, finish = told(engine, ask("Who?", sampling=sampled(seed), constraint=Constraint("json_schema", PERSON)))
    assert finish == "stop"
    found = json.loads(text)
    assert set(found) == {"name", "age", "kind"}
    assert len(found["name"]) <= 8
    assert 0 <= found["age"] <= 150
    assert found["kind"] in ("cat", "dog")


@pytest.mark.parametrize(
    ("constraint", "check"),
    [
        (Constraint("regex", r"[A-Z]{3}-\d{4}"), lambda text: re.fullmatch(r"[A-Z]{3}-\d{4}", text)),
        (
            Constraint("choice", ['say "yes"', "no\nway", "日本", "<b>"]),
            ['say "yes"', "no\nway", "日本", "<b>"].__contains__,
        ),
        (Constraint("choice", ("rising", "falling")), ["rising", "falling"].__contains__),
        (Constraint("choice", ["yes", "yes, but"]), ["yes", "yes, but"].__contains__),
    ],
    ids=["regex", "any texts", "words", "one begins another"],
)
def test_other_forms(engine, ask, constraint, check):
    for seed in range(4):
        text, finish = told(engine, ask("Which?", sampling=sampled(seed), constraint=constraint))
        assert finish == "stop"
        assert check(text), text


def test_any_object(engine, ask):
    """The demo model would never end an object, so its beginning is checked, and that spaces have an end."""
    text, _ = told(engine, ask("An object.", max_tokens=200, constraint=Constraint("json")))
    assert text.startswith("{")
    assert not re.search(r"\s{40}", text)


def test_greedy_takes_the_best_that_is_allowed(engine, ask):
    free, _ = told(engine, ask("Which column has the largest mean?\na: 1, 2\nb: 3, 4", max_tokens=4))
    same, _ = told(
        engine,
        ask("Which column has the largest mean?\na: 1, 2\nb: 3, 4", constraint=Constraint("choice", [free, "x" * 50])),
    )
    assert same == free


def test_with_stop_strings_and_a_limit(engine, ask):
    form = Constraint("regex", "(ab){100}")
    assert told(engine, ask("Go.", max_tokens=9, constraint=form))[1] == "length"
    stopping = Sampling(temperature=0, max_tokens=90, stop=("ba",))
    assert told(engine, ask("Go.", sampling=stopping, constraint=form)) == ("a", "stop")


@pytest.mark.parametrize(
    ("constraint", "sentence"),
    [
        (Constraint("json_schema", {"type": "objekt"}), "This JSON schema cannot be used: Invalid type: objekt"),
        (Constraint("json_schema", {"$ref": "#/nowhere"}), "Pointer '/nowhere' does not exist"),
        (Constraint("json_schema", {"type": "object", "if": {}}), 'Unimplemented keys: \\["if"\\]'),
        (Constraint("json_schema", ["a"]), "A JSON schema is an object, not list"),
        (Constraint("regex", "("), "This pattern cannot be used: .* unclosed group"),
        (Constraint("regex", "(?=a)b"), "look-around, .* is not supported"),
        (Constraint("regex", ""), "A pattern is a text that is not empty"),
        (Constraint("choice", []), "A choice is a list of texts"),
        (Constraint("choice", "yes"), "A choice is a list of texts"),
        (Constraint("choice", ["yes", ""]), "A choice is a list of texts"),
        (Constraint("choice", [1, 2]), "A choice is a list of texts"),
    ],
    ids=str,
)
def test_forms_that_cannot_be_used(engine, ask, constraint, sentence):
    with pytest.raises(BadOption, match=sentence):
        told(engine, ask("Go.", constraint=constraint))
    assert engine.status().requests == 0


def test_the_form_ends_its_own_stream_only(watched, engine, ask, read):
    """A grammar that cannot be followed any more is an error of that answer."""
    watched.spoil = lambda scores: torch.full_like(scores, -torch.inf)
    assert isinstance(read(engine, ask("Go.", constraint=Constraint("choice", ["yes"]))).join().error, ModelError)
    watched.spoil = None
    assert read(engine, ask("Go.", constraint=Constraint("choice", ["yes"]))).join().text == "yes"


# ------------------------------------------------------------------------------------------------ thoughts and calls


class Words:
    """A vocabulary of a thinking model."""

    texts = ("<eos>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>")
    words = (*texts, "yes", "no", "hm", "thought\n", "call:f{}")
    special = {text: number for number, text in enumerate(texts)}  # noqa: RUF012
    size = len(words)

    def bytes_of(self, number):
        return self.words[number].encode()

    def encode(self, text):
        return [self.words.index(text)]


def allowed(grammar, state):
    scores = grammar.allowed(torch.zeros(Words.size + 5), state)
    return {Words.words[number] for number in torch.nonzero(scores == 0).flatten().tolist() if number < Words.size}


def accept(grammar, word, state="text"):
    return grammar.accept(Words.words.index(word), state)


def grammar(**options):
    maker = GrammarMaker(Words(), frozenset((0, 1)))
    return maker.make(Constraint("choice", ["yes", "no"]), **{"thinking": False, "tools": False, **options})


def test_the_form_begins_after_the_thought():
    found = grammar(thinking=True)
    assert allowed(found, "text") == {"yes", "no", "<|channel>"}
    assert not accept(found, "<|channel>")
    assert allowed(found, "thinking") == {*Words.words} - {"<eos>", "<turn|>"}
    for word in ("thought\n", "hm", "no"):
        assert not accept(found, word, "thinking")
    assert not accept(found, "<channel|>", "thinking")
    assert allowed(found, "text") == {"yes", "no"}, "one thought is enough"
    assert accept(found, "no"), "nothing can follow"


def test_without_thinking_there_is_no_thought():
    assert allowed(grammar(), "text") == {"yes", "no"}


def test_a_tool_may_be_called_instead():
    found = grammar(tools=True)
    assert allowed(found, "text") == {"yes", "no", "<|tool_call>"}
    accept(found, "<|tool_call>")
    assert allowed(found, "call") == {*Words.words}
    accept(found, "call:f{}", "call")
    accept(found, "<tool_call|>", "call")
    assert allowed(found, "text") == {"yes", "no", "<|tool_call>", "<eos>", "<turn|>"}
    accept(found, "yes")
    assert allowed(found, "text") <= {"<eos>", "<turn|>"}


def test_scores_beyond_the_vocabulary_are_never_allowed():
    scores = grammar().allowed(torch.zeros(Words.size + 5), "text")
    assert torch.isinf(scores[Words.size :]).all()


# ------------------------------------------------------------------------------------------------ a real vocabulary


def test_gemmas_vocabulary(gemma3_file):
    """262,144 tokens: what is allowed at the beginning of an object, and after it."""
    tokenizer = load_tokenizer(gemma3_file)
    maker = GrammarMaker(tokenizer, frozenset((1, 106)))
    found = maker.make(Constraint("json_schema", PERSON), thinking=True, tools=True)
    scores = torch.zeros(262208)
    begin = {tokenizer.token_of(n) for n in torch.nonzero(found.allowed(scores, "text") == 0).flatten().tolist()}
    assert {"{", '{"'} <= begin
    assert all(token.startswith("{") or token == "<0x7B>" for token in begin)
    ids = tokenizer.encode('{"name": "Kater", "age": 3, "kind": "cat"}')
    assert [found.accept(number, "text") for number in ids] == [False] * (len(ids) - 1) + [True]
