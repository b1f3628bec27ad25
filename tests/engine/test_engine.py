"""The engine as its callers see it: text in, chunks out; tools, chances, base models, and what it says of a prompt."""

from __future__ import annotations

import io
import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import jupyter_gemma
from jupyter_gemma.engine.engine import cache_memory, load_engine
from jupyter_gemma.engine.output import parse_call
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.turns import write_value
from jupyter_gemma.errors import BadOption, UnsupportedInput
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import ImagePart, Message, ModelCard, Request, Sampling, TextPart, ToolCall

DEMO = Path(jupyter_gemma.__file__).parent / "models" / "demo"
GREEDY = Sampling(temperature=0, max_tokens=40)
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}},
}


def chunks_of(engine, request):
    return list(engine.stream(request, threading.Event()))


def text_of(chunks):
    return "".join(chunk.text for chunk in chunks)


@pytest.fixture
def script(watched, builder):
    """Make the model say a text, token by token, and then end its turn."""

    def say(text):
        ids = [*builder.tokenizer.encode(text), 1]

        def spoil(scores):
            forced = torch.full_like(scores, -20.0)
            forced[:, ids.pop(0)] = 20.0
            return forced

        watched.spoil = spoil

    return say


@pytest.fixture
def gemma4(make_engine, builder, tmp_path):
    """An engine with our own Gemma 4 turns."""
    template = load_template(tmp_path, builder.tokenizer, instruct=True, architecture="gemma4_unified")
    return make_engine(builder=replace(builder, template=template))


# ------------------------------------------------------------------------------------------------ answers


def test_the_packaged_model_answers(tmp_path):
    """Loaded as the server loads it."""
    settings_ = Settings(models_dir=str(tmp_path), threads=1, cache_memory="50MB")
    engine = load_engine(DEMO, ModelCard("demo"), settings_, lambda progress: None)
    try:
        question = Message("user", (TextPart("Which column has the largest mean?\nprice: 1, 2, 3\ncost: 7, 8, 9"),))
        request = Request((question,), sampling=Sampling(temperature=0, max_tokens=40))
        chunks = chunks_of(engine, request)
        assert text_of(chunks).strip()
        last = chunks[-1]
        assert last.finish == "stop"
        assert last.usage.prompt_tokens == engine.count(request).prompt_tokens
        assert last.usage.completion_tokens == engine.status().completion_tokens
        status = engine.status()
        assert (status.quantization, status.cache_limit) == ("none", 50_000_000)
        assert status.weight_bytes > 10**6
        assert status.digest
    finally:
        engine.close()


def test_keys_and_values_in_int8_take_a_third_and_give_the_same_answers(tmp_path):
    """A third of what they take as this model computes them: 64 bytes and a scale for 64 values, not 256."""
    table = "rows 64\nprice: mean 48 min 6 max 95\nscore: mean 71 min 19 max 88\ncity: text 12 unique\n"
    questions = ("How many rows are there?", "Which columns are text?", "How many columns are there?")
    said, held = [], []
    for kind in ("auto", "int8"):
        given = Settings(models_dir=str(tmp_path), threads=1, cache_memory="50MB", cache_type=kind, speculation="off")
        engine = load_engine(DEMO, ModelCard("demo"), given, lambda progress: None)
        try:
            asked = [
                Request((Message("user", (TextPart(table + question),)),), sampling=GREEDY) for question in questions
            ]
            said.append([text_of(chunks_of(engine, request)) for request in asked])
            held.append(engine.status().cache_bytes)
        finally:
            engine.close()
    assert said[0] == said[1]
    assert 0 < held[1] < held[0] / 3


def test_a_seed_repeats_an_answer(engine, ask):
    def draw(seed):
        return text_of(chunks_of(engine, ask("Go on.", sampling=Sampling(temperature=1.5, seed=seed, max_tokens=30))))

    assert draw(5) == draw(5)
    assert len({draw(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_is_none(engine, ask, limit):
    with pytest.raises(BadOption, match="max_tokens"):
        chunks_of(engine, ask("Hi", max_tokens=limit))


def test_a_thought_is_told_apart(engine, ask, script):
    script("<|channel>thought\nIt is blue.<channel|>Blue.")
    chunks = chunks_of(engine, ask("Colour?", max_tokens=100, thinking=True))
    assert text_of(chunks) == "Blue."
    assert "".join(chunk.thinking for chunk in chunks) == "It is blue."


def test_a_base_model_goes_on_until_its_limit(watched, make_engine, builder, ask, tmp_path):
    template = load_template(tmp_path, builder.tokenizer, instruct=False, architecture="gemma3_text")
    engine = make_engine(ModelCard("base", instruct=False), builder=replace(builder, template=template))
    watched.spoil = lambda scores: scores.index_fill(1, torch.tensor([1, 5]), -math.inf)
    chunks = chunks_of(engine, ask("Once", sampling=Sampling(temperature=0)))
    assert engine.render(ask("Once")) == "<bos>Once"
    assert (chunks[-1].finish, chunks[-1].usage.completion_tokens) == ("length", 128)


def test_a_full_context_can_be_told_from_a_limit(watched, make_engine, builder, ask):
    engine = make_engine(builder=replace(builder, context_length=40))
    watched.spoil = lambda scores: scores.index_fill(1, torch.tensor(sorted(engine._stops)), -math.inf)
    last = chunks_of(engine, ask("Once", sampling=Sampling(temperature=0)))[-1]
    assert last.finish == "length"
    assert last.usage.prompt_tokens + last.usage.completion_tokens == engine.status().context_length == 40


# ------------------------------------------------------------------------------------------------ a prompt


def test_a_prompt_is_shown_counted_and_split(engine, ask, say):
    data = io.BytesIO()
    Image.new("RGB", (96, 48)).save(data, "PNG")
    request = ask(say("user", ImagePart(data.getvalue()), "What is this?"))
    assert engine.render(request) == "<bos><|turn>user\n<|image|>What is this?<turn|>\n<|turn>model\n"
    usage = engine.count(request)
    assert usage.image_tokens > 0
    used = chunks_of(engine, request)[-1].usage
    assert (used.text_tokens, used.image_tokens) == (usage.text_tokens, usage.image_tokens)
    ids = engine.tokenize("What is this?")
    assert engine.builder.tokenizer.decode(ids) == "What is this?"
    assert engine.status().requests == 1, "showing and counting ask the model nothing"


# ------------------------------------------------------------------------------------------------ chances


def test_chances_are_those_before_any_filter(watched, engine, ask):
    """Reported for each token of the text: its bytes, and the likeliest, which a greedy answer begins with."""
    seen = []
    watched.spoil = lambda scores: seen.append(torch.log_softmax(scores, 1)[0]) or scores
    chunks = chunks_of(engine, ask("Which is it?", sampling=Sampling(temperature=0, max_tokens=12, logprobs=3)))
    chances = [chance for chunk in chunks for chance in chunk.logprobs]
    assert b"".join(chance.data for chance in chances).decode() == text_of(chunks)
    assert len(chances) == chunks[-1].usage.completion_tokens
    for chance, scores in zip(chances, seen, strict=False):
        assert chance.logprob == pytest.approx(float(scores.max()), abs=1e-5)
        assert [other.logprob for other in chance.top] == pytest.approx(torch.topk(scores, 3)[0].tolist(), abs=1e-5)
        assert (chance.top[0].data, chance.top[0].logprob) == (chance.data, chance.logprob)


def test_chances_of_a_sampled_answer_without_alternatives(engine, ask):
    wild = Sampling(temperature=2.0, top_k=0, top_p=1.0, seed=3, max_tokens=12, logprobs=0)
    chances = [chance for chunk in chunks_of(engine, ask("Go.", sampling=wild)) for chance in chunk.logprobs]
    assert chances
    assert all(chance.top == () and chance.logprob <= 0 for chance in chances)


def test_no_chances_of_thoughts_and_none_unasked(engine, ask, script):
    text = "<|channel>thought\nhm<channel|>Yes."
    script(text)
    chunks = chunks_of(engine, ask("Sure?", sampling=Sampling(temperature=0, max_tokens=99, logprobs=1)))
    shown = b"".join(chance.data for chunk in chunks for chance in chunk.logprobs)
    assert shown.endswith(b"Yes.")
    assert b"hm" not in shown
    script(text)
    assert not any(chunk.logprobs for chunk in chunks_of(engine, ask("Sure?", max_tokens=99)))


@pytest.mark.parametrize("count", [-1, 21])
def test_too_many_alternatives(engine, ask, count):
    with pytest.raises(BadOption, match=r"logprobs cannot be .* from 0 to 20"):
        chunks_of(engine, ask("Hi", sampling=Sampling(logprobs=count)))


# ------------------------------------------------------------------------------------------------ tools


def test_tools_are_declared_called_and_answered(gemma4, ask, say, script):
    """Two calls in one turn, their results, and the answer; the calls are shown again as the model wrote them."""
    question = say("user", "Weather and time in Tokyo?")
    request = ask(question, tools=(WEATHER,), max_tokens=200)
    assert "<|tool>declaration:weather{" in gemma4.render(request)
    calls = '<|tool_call>call:weather{days:2,place:<|"|>Tokyo, {JP}<|"|>}<tool_call|><|tool_call>call:now{}<tool_call|>'
    script(f"Let me look.{calls}<|tool_response>")
    chunks = chunks_of(gemma4, request)
    called = tuple(chunk.tool_call for chunk in chunks if chunk.tool_call)
    assert called == (
        ToolCall("weather", {"days": 2, "place": "Tokyo, {JP}"}, "call_1"),
        ToolCall("now", {}, "call_2"),
    )
    assert (text_of(chunks), chunks[-1].finish) == ("Let me look.", "tool_calls")

    results = [
        Message("tool", (TextPart(text),), tool_call_id=call.id)
        for call, text in zip(called, ('{"rain": true}', "9:00"), strict=True)
    ]
    following = ask(question, Message("assistant", (), tool_calls=called), *results, tools=(WEATHER,), max_tokens=200)
    shown = gemma4.render(following)
    assert calls in shown
    assert shown.index(calls) < shown.index('{"rain": true}') < shown.index("9:00")
    script("It rains.")
    chunks = chunks_of(gemma4, following)
    assert (text_of(chunks), chunks[-1].finish) == ("It rains.", "stop")
    assert chunks[-1].usage.cached_tokens >= 40, "the question was computed before"


@pytest.mark.parametrize("call", ["call:weather{place:", "call:weather{place:Tokyo}", "weather()", "call:{}"])
def test_a_malformed_call_comes_as_text(gemma4, ask, script, call):
    script(f"Look: <|tool_call>{call}<tool_call|>!")
    chunks = chunks_of(gemma4, ask("Weather?", tools=(WEATHER,), max_tokens=100))
    assert (text_of(chunks), chunks[-1].finish) == (f"Look: {call}!", "stop")
    assert not any(chunk.tool_call for chunk in chunks)


def test_a_template_without_tools_refuses_them(engine, ask, say):
    """The demo's knows none; results from elsewhere in the conversation are still shown."""
    with pytest.raises(UnsupportedInput, match="not taught to call tools"):
        chunks_of(engine, ask("Weather?", tools=(WEATHER,)))
    assert "It rains" in engine.render(ask(say("user", "Q"), Message("tool", (TextPart("It rains"),), name="weather")))


names = st.text(alphabet="abcXYZ_019", min_size=1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(names, values, max_size=4))
def test_arguments_are_read_as_they_are_written(arguments):
    assert parse_call(f"call:f{write_value(arguments)}") == ("f", arguments)


# ------------------------------------------------------------------------------------------------ memory


def test_the_memory_for_keys_and_values():
    assert cache_memory("4GB", "cpu") == 4 * 10**9
    assert cache_memory("1MiB", "cpu") == 1 << 20
    assert cache_memory("", "cpu") > 10**6
    with pytest.raises(BadOption, match="cache_memory is 'much'"):
        cache_memory("much", "cpu")
