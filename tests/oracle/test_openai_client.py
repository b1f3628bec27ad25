"""Somebody else's client against real server processes: the official ``openai`` package asks ours, with the test
engine, the demo and the real 270M weights, and llama-cpp-python's server with the same weights.

Each test names what it needs, and runs on every server that has it.
"""

import base64
import gc
import io
import json
import math
import os
import re
import signal
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jupyter_gemma.discovery import find_or_start
from jupyter_gemma.settings import load_settings

openai = pytest.importorskip("openai")

CHAT = {"chat", "json"}
OURS = CHAT | {"n", "logprobs", "schema", "regex", "errors", "models", "usage"}
ABLE = {
    "echo": OURS | {"echo", "media", "sound", "tools"},
    "demo": OURS | {"media", "sound", "cache", "stop", "real"},
    "gemma3-270m": OURS | {"completions", "cache", "stop", "real"},
    "llama.cpp": CHAT | {"completions", "stop", "real"},
}
QUESTION = [{"role": "user", "content": "Hello there"}]
COUNT = [{"role": "user", "content": "one two three four five six seven"}]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
TOOL = {
    "type": "function",
    "function": {"name": "mean", "parameters": {"type": "object", "properties": {"column": {"type": "string"}}}},
}
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["bar", "pie"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@dataclass
class Served:
    """A server to ask: its client, and the model to name."""

    client: Any
    model: str

    def chat(self, messages: Any = QUESTION, **options: Any) -> Any:
        """One chat completion, short and repeatable unless said otherwise."""
        options = {"temperature": 0.0, "max_tokens": 5, **options}
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

    def streamed(self, messages: Any = QUESTION, **options: Any) -> list[Any]:
        """The same as all chunks of a stream."""
        return list(self.chat(messages, stream=True, **options))

    def continued(self, prompt: str = "Once upon a time", **options: Any) -> Any:
        """One text completion."""
        options = {"temperature": 0.0, "max_tokens": 8, **options}
        return self.client.completions.create(model=self.model, prompt=prompt, **options)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.fixture(scope="session")
def our_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[str, str]]]:
    """URL and token of our server with an engine; each is started once."""
    folder = tmp_path_factory.mktemp("state")
    started: dict[str, Any] = {}

    def start(engine: str) -> tuple[str, str]:
        if engine not in started:
            state = {"engine": engine, "runtime_dir": str(folder / engine), "models_dir": str(folder / "models")}
            started[engine] = find_or_start(load_settings({**state, "cache_memory": "500MB", "threads": 1}, environ={}))
        return started[engine].url, started[engine].token

    yield start
    for server in started.values():
        os.kill(server.pid, signal.SIGTERM)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """The server that the test runs on."""
    name = request.param
    if name == "llama.cpp":
        url, token = request.getfixturevalue("llama_server"), "none"
    else:
        url, token = request.getfixturevalue("our_servers")("echo" if name == "echo" else "gemma")
    with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, timeout=60) as client:
        model = client.models.list().data[0].id if name == "llama.cpp" else name
        yield Served(client, model)
    gc.collect()  # a broken stream that is collected later, amid the first import of httpx, fails in openai


def on(*needed: str) -> Any:
    """Run a test on each server that can do what is needed."""
    names = [name for name, able in ABLE.items() if set(needed) <= able]
    return pytest.mark.parametrize("served", names, indirect=True, scope="session")


# -- models ---


@on("chat")
def test_models_are_listed(served: Served) -> None:
    assert served.model in [model.id for model in served.client.models.list()]


@on("models")
def test_every_model_has_its_card(served: Served) -> None:
    entries = {model.id: model for model in served.client.models.list()}
    assert entries[served.model].model_extra["card"]["name"] == served.model
    assert served.client.models.retrieve(served.model) == entries[served.model]
    with pytest.raises(openai.NotFoundError, match="'gpt-4'"):
        served.client.models.retrieve("gpt-4")


# -- whole answers ---


@on("chat")
def test_a_whole_answer(served: Served) -> None:
    answer = served.chat()
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@on("chat")
def test_the_same_question_has_the_same_answer(served: Served) -> None:
    first, second = served.chat(), served.chat()
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.id != second.id


@on("chat")
def test_a_limit_ends_an_answer(served: Served) -> None:
    answer = served.chat(COUNT, max_tokens=2)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.usage.completion_tokens <= 2


@on("usage")
def test_the_newer_name_of_the_limit(served: Served) -> None:
    options = {"max_tokens": openai.NOT_GIVEN, "max_completion_tokens": 1}
    assert served.chat(COUNT, **options).usage.completion_tokens <= 1


@on("chat")
def test_a_system_turn(served: Served) -> None:
    assert served.chat([{"role": "system", "content": "Be brief."}, *QUESTION]).choices[0].message.content


@on("errors")
def test_a_developer_turn_is_a_system_turn(served: Served) -> None:
    texts = [
        served.chat([{"role": role, "content": "Be brief."}, *QUESTION]).choices[0].message.content
        for role in ("system", "developer")
    ]
    assert texts[0] == texts[1]


@on("chat")
def test_a_conversation(served: Served) -> None:
    turns = [*QUESTION, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "And now?"}]
    assert served.chat(turns).usage.prompt_tokens > 0


@on("usage")
def test_text_in_parts(served: Served) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    answer = served.chat([{"role": "user", "content": parts}])
    assert answer.usage.prompt_tokens > 0


@on("chat", "real")
def test_a_seed_makes_chance_repeatable(served: Served) -> None:
    options = {"temperature": 1.5, "max_tokens": 6, "seed": 11}
    texts = [served.chat(**options).choices[0].message.content for _ in range(2)]
    assert texts[0] == texts[1]


@on("chat")
def test_options_of_sampling(served: Served) -> None:
    answer = served.chat(temperature=0.7, top_p=0.9, seed=1, presence_penalty=0, frequency_penalty=0, user="me")
    assert answer.choices[0].message.content is not None


@on("errors")
def test_our_own_options(served: Served) -> None:
    extra = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.1}
    assert served.chat(temperature=0.8, extra_body=extra).choices[0].message.content is not None


@on("stop")
def test_a_stop_string_ends_an_answer_and_is_not_in_it(served: Served) -> None:
    whole = served.chat(COUNT, max_tokens=12).choices[0].message.content
    stop = whole.strip()[3:6] or whole[-1:]
    cut = served.chat(COUNT, max_tokens=12, stop=[stop]).choices[0]
    assert stop not in cut.message.content
    assert whole.startswith(cut.message.content)
    assert cut.finish_reason == "stop"


@on("stop")
def test_a_stop_string_alone_is_taken_too(served: Served) -> None:
    assert served.chat(COUNT, stop="\u2603").choices[0].message.content


# -- streams ---


@on("chat")
def test_a_streamed_answer_is_the_whole_answer(served: Served) -> None:
    chunks = served.streamed()
    assert text_of(chunks) == served.chat().choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in ("stop", "length")
    assert len({chunk.id for chunk in chunks}) == 1


@on("usage")
def test_a_stream_tells_its_usage_where_asked(served: Served) -> None:
    *chunks, last = served.streamed(stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.prompt_tokens == served.chat().usage.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks)
    assert all(chunk.usage is None for chunk in served.streamed())


@on("usage", "media")  # a base model never ends its turn, which this helper takes for a failure
def test_the_clients_own_stream_helper(served: Served) -> None:
    with served.client.chat.completions.stream(model=served.model, messages=QUESTION, max_tokens=100) as stream:
        assert [event.type for event in stream]
        assert stream.get_final_completion().choices[0].message.content


@on("chat")
def test_leaving_a_stream_leaves_a_usable_server(served: Served) -> None:
    with served.chat([{"role": "user", "content": "word " * 100}], stream=True, max_tokens=100) as stream:
        next(iter(stream))
    assert (
        served.client.with_options(timeout=20)
        .chat.completions.create(model=served.model, messages=QUESTION, max_tokens=2)
        .choices
    )


# -- several choices, chances ---


@on("n")
def test_several_choices(served: Served) -> None:
    answer = served.chat(n=3, temperature=1.5, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.prompt_tokens == served.chat().usage.prompt_tokens
    again = served.chat(n=3, temperature=1.5, seed=3)
    assert [choice.message.content for choice in again.choices] == [c.message.content for c in answer.choices]


@on("n")
def test_several_choices_in_one_stream(served: Served) -> None:
    whole = served.chat(n=2, temperature=1.5, seed=3)
    texts = ["", ""]
    for chunk in served.streamed(n=2, temperature=1.5, seed=3):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


@on("logprobs")
def test_chances_of_tokens(served: Served) -> None:
    choice = served.chat(logprobs=True, top_logprobs=2).choices[0]
    found = choice.logprobs.content
    assert "".join(entry.token for entry in found).startswith(choice.message.content[:4])
    assert all(entry.logprob <= 0 for entry in found)
    assert all(len(entry.top_logprobs) <= 2 for entry in found)
    assert all(bytes(entry.bytes) for entry in found)


@on("logprobs", "real")
def test_the_greedy_token_is_the_likeliest(served: Served) -> None:
    for entry in served.chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content:
        assert entry.token == max(entry.top_logprobs, key=lambda top: top.logprob).token
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.0001


@on("logprobs")
def test_chances_in_a_stream(served: Served) -> None:
    chunks = served.streamed(logprobs=True)
    found = [e for chunk in chunks for c in chunk.choices if c.logprobs for e in c.logprobs.content or []]
    assert [e.token for e in found] == [e.token for e in served.chat(logprobs=True).choices[0].logprobs.content]


@on("logprobs")
def test_without_asking_there_are_no_chances(served: Served) -> None:
    assert served.chat().choices[0].logprobs is None


# -- forms ---


@on("json")
def test_an_answer_in_json(served: Served) -> None:
    text = served.chat(response_format={"type": "json_object"}, max_tokens=16).choices[0].message.content
    assert text.lstrip().startswith("{")


@on("schema", "real")
def test_an_answer_by_a_schema(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "plot", "schema": SCHEMA, "strict": True}}
    found = json.loads(served.chat(response_format=form, max_tokens=200).choices[0].message.content)
    assert found["kind"] in ("bar", "pie")
    assert 0 <= found["count"] <= 9


@on("schema", "real")
def test_a_streamed_answer_by_a_schema(served: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "plot", "schema": SCHEMA, "strict": True}}
    assert set(json.loads(text_of(served.streamed(response_format=form, max_tokens=200)))) == {"kind", "count"}


@on("regex", "real")
def test_an_answer_by_a_pattern(served: Served) -> None:
    answer = served.chat(extra_body={"regex": "[a-c]{3}-[0-9]{2}"}, max_tokens=20)
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", answer.choices[0].message.content)


@on("regex")
def test_an_answer_by_choice(served: Served) -> None:
    assert served.chat(extra_body={"choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no")


@on("json")
def test_a_form_that_asks_for_nothing(served: Served) -> None:
    assert served.chat(response_format={"type": "text"}).choices[0].message.content


# -- media ---


@on("media")
def test_a_picture(served: Served) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "high"}},
        {"type": "text", "text": "Explain this plot."},
    ]
    usage = served.chat([{"role": "user", "content": parts}]).usage
    details = usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] > 0
    assert details["text_tokens"] + details["image_tokens"] == usage.prompt_tokens


def clip(seconds: float = 1.0) -> bytes:
    """A tone, as a WAV file."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        samples = (int(9000 * math.sin(index / 6)) for index in range(int(seconds * 16000)))
        file.writeframes(b"".join(sample.to_bytes(2, "little", signed=True) for sample in samples))
    return out.getvalue()


@on("sound")
def test_a_clip(served: Served) -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(clip()).decode(), "format": "wav"}}
    text = {"type": "text", "text": "Transcribe the audio."}
    usage = served.chat([{"role": "user", "content": [part, text]}]).usage
    assert usage.prompt_tokens_details.audio_tokens > 0


@on("media", "sound")
def test_several_pictures_and_clips_in_one_question(served: Served) -> None:
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(clip(0.2)).decode(), "format": "wav"}}
    one = served.chat([{"role": "user", "content": [picture, sound]}]).usage
    two = served.chat([{"role": "user", "content": [picture, sound, picture, sound]}]).usage
    for name in ("image_tokens", "audio_tokens"):
        single = {**one.prompt_tokens_details.model_dump()}[name]
        assert {**two.prompt_tokens_details.model_dump()}[name] == 2 * single > 0


SPEECH = Path(__file__).parents[2] / "examples" / "data" / "sort.wav"


@on("sound")
@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json"])
def test_a_transcript(served: Served, form: str) -> None:
    answer = served.client.audio.transcriptions.create(
        model=served.model, file=("sort.wav", SPEECH.read_bytes()), response_format=form
    )
    text = answer if isinstance(answer, str) else answer.text
    assert ("sort by column" if served.model == "demo" else "sound of") in text or form in ("srt", "vtt")
    if form in ("srt", "vtt"):
        assert " --> " in text
    if form == "verbose_json":
        assert answer.segments[0].end > answer.segments[0].start


@on("sound")
def test_a_streamed_transcript(served: Served) -> None:
    clip = ("sort.wav", SPEECH.read_bytes())
    with served.client.audio.transcriptions.create(model=served.model, file=clip, stream=True) as stream:
        events = list(stream)
    assert events[-1].type == "transcript.text.done"
    assert "".join(event.delta for event in events[:-1]).strip() == events[-1].text


# -- tools ---


@on("tools")
def test_a_call_of_a_tool(served: Served) -> None:
    answer = served.chat([{"role": "user", "content": "call mean"}], tools=[TOOL])
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("mean", {"text": "call mean"})


@on("tools")
def test_a_call_in_a_stream(served: Served) -> None:
    chunks = served.streamed([{"role": "user", "content": "call mean"}], tools=[TOOL], tool_choice="auto")
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert [call.function.name for call in calls] == ["mean"]


@on("tools")
def test_the_result_of_a_call(served: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "mean", "arguments": '{"column": "b"}'}}
    turns = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3.5"},
    ]
    assert served.chat(turns, tools=[TOOL]).choices[0].message.content == "Hello there"


@on("tools")
def test_tools_that_are_not_to_be_used(served: Served) -> None:
    answer = served.chat([{"role": "user", "content": "call mean"}], tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None


# -- texts to continue ---


@on("completions")
def test_a_text_is_continued(served: Served) -> None:
    answer = served.continued()
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8


@on("completions")
def test_a_text_is_continued_the_same_way_in_a_stream(served: Served) -> None:
    chunks = list(served.continued(stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == served.continued().choices[0].text


@on("completions")
def test_a_stop_string_in_a_text(served: Served) -> None:
    whole = served.continued().choices[0].text
    cut = served.continued(stop=whole.split()[-1]).choices[0].text
    assert whole.startswith(cut)
    assert len(cut) < len(whole)


@on("completions", "n")
def test_chances_in_a_text(served: Served) -> None:
    found = served.continued(logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 8
    assert len(served.continued(n=2, temperature=1.0, seed=1).choices) == 2


# -- what was read before ---


@on("cache")
def test_a_follow_up_reads_only_what_is_new(served: Served) -> None:
    text = "The mean of column b is three and the largest value of column c is nine. " * 6
    first = served.chat([{"role": "user", "content": text}])
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": first.choices[0].message.content}]
    usage = served.chat([*turns, {"role": "user", "content": "And the smallest?"}]).usage
    assert usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2


# -- errors ---


@on("errors")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n": 99}, "n is 99"),
        ({"temperature": 3}, "temperature is 3"),
        ({"extra_body": {"tempurature": 1}}, "Did you mean temperature|no option"),
        ({"messages": []}, "messages has 0 entries"),
        ({"response_format": {"type": "xml"}}, "xml"),
    ],
    ids=["n", "range", "name", "empty", "form"],
)
def test_a_wrong_question_is_the_clients_bad_request(served: Served, options: dict[str, Any], named: str) -> None:
    with pytest.raises(openai.BadRequestError, match=named) as caught:
        served.client.chat.completions.create(**{"model": served.model, "messages": QUESTION, **options})
    assert caught.value.code in ("invalid_option", "invalid_request")


@on("errors")
def test_an_unknown_model_is_not_found(served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4") as caught:
        served.client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert caught.value.code == "model_not_found"


@on("errors")
def test_a_wrong_key_is_the_clients_authentication_error(served: Served) -> None:
    with pytest.raises(openai.AuthenticationError, match="token"):
        served.client.with_options(api_key="wrong").models.list()


@on("errors", "real")
def test_what_a_model_cannot_take_is_said(served: Served) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError) as caught:
        served.chat([{"role": "user", "content": parts}])
    assert caught.value.code in ("invalid_image", "unsupported_input")


@on("errors")
def test_a_remote_picture_is_not_fetched(served: Served) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        served.chat([{"role": "user", "content": parts}])


# -- the test engine says what it got ---


@on("echo")
def test_what_was_sent_arrived(served: Served) -> None:
    assert served.chat().choices[0].message.content == "Hello there"
    assert served.chat(extra_body={"thinking": True}).choices[0].message.reasoning_content == "Looking at what arrived."


@on("echo")
def test_loading_another_model_does_not_disturb_a_stream(served: Served) -> None:
    # echo-slow reports its loading in comments before the answer.
    chunks = served.client.chat.completions.create(model="echo-slow", messages=QUESTION, stream=True)
    assert text_of(list(chunks)) == "Hello there"


@on("echo")
def test_a_broken_model_is_told_by_status_and_in_a_stream(served: Served) -> None:
    create = served.client.chat.completions.create
    with pytest.raises(openai.UnprocessableEntityError, match="broken on purpose"):
        create(model="echo-broken", messages=QUESTION)
    with pytest.raises(openai.APIError, match="broken on purpose"):
        list(create(model="echo-broken", messages=QUESTION, stream=True))
