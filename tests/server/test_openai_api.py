"""The wire form: requests and answers, both ways, and what is refused."""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jupyter_gemma.errors import BadAudio, BadImage, BadOption, GemmaError, RequestError, ServerError, from_wire
from jupyter_gemma.server.body import decode_body, include_usage, wants_stream
from jupyter_gemma.server.guard import MAX_DEPTH
from jupyter_gemma.server.openai_api import completion, model_list
from jupyter_gemma.types import (
    AudioPart,
    Chunk,
    Constraint,
    Frame,
    ImagePart,
    Message,
    ModelCard,
    Progress,
    Request,
    Sampling,
    TextPart,
    TokenChance,
    ToolCall,
    Usage,
    VideoPart,
)
from jupyter_gemma.wire import media as wire_media
from jupyter_gemma.wire import request as wire_request
from jupyter_gemma.wire.answer import DONE, AnswerDecoder, AnswerEncoder, Head, card_from_json, event, usage_from_json
from jupyter_gemma.wire.media import data_uri
from jupyter_gemma.wire.request import as_choice, choices_wanted, parse_completion, parse_request, request_body

FIXTURES = sorted((Path(__file__).parents[1] / "wire").glob("*.jsonl"))
PIXEL = data_uri(b"\x89PNG\r\n")
HEAD = Head("chatcmpl-1", "demo", 1750000000)


def asked(content: Any, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **options}


def plain(chunk: Chunk) -> dict[str, Any]:
    """A chunk as JSON, without what is empty; bytes are lists of numbers."""
    empty = asdict(Chunk())
    found = {key: value for key, value in asdict(chunk).items() if value != empty[key]}
    loaded: dict[str, Any] = json.loads(json.dumps(found, default=list))
    return loaded


def as_chunk(content: dict[str, Any]) -> Chunk:
    """The inverse of :func:`plain`."""
    kinds = {"tool_call": ToolCall, "progress": Progress, "usage": Usage}
    made = {key: kinds[key](**value) if isinstance(value, dict) else value for key, value in content.items()}
    return Chunk(**{**made, "logprobs": as_chances(content.get("logprobs", []))})


def as_chances(content: list[dict[str, Any]]) -> tuple[TokenChance, ...]:
    return tuple(
        TokenChance(entry["text"], bytes(entry["data"]), entry["logprob"], as_chances(entry["top"]))
        for entry in content
    )


# -- the shared fixtures: see tests/wire ---


def read_fixture(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {"request": [], "event": [], "chunk": [], "error": []}
    for line in path.read_text(encoding="utf-8").strip().split("\n"):
        for kind, value in json.loads(line).items():
            found[kind].append(value)
    return found


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_events_of_a_fixture_are_read_as_its_chunks(path: Path) -> None:
    fixture = read_fixture(path)
    decoder = AnswerDecoder()
    chunks: list[Chunk] = []
    errors: list[dict[str, str]] = []
    try:
        for line in fixture["event"]:
            chunks += decoder.feed(line)
        chunks += decoder.end()
    except GemmaError as error:
        errors = [{"code": error.code, "message": error.message, "fix": error.fix}]
    assert [plain(chunk) for chunk in chunks] == fixture["chunk"]
    assert errors == fixture["error"]


@pytest.mark.parametrize("path", [path for path in FIXTURES if path.stem != "foreign"], ids=lambda path: path.stem)
def test_a_fixture_is_what_our_server_writes(path: Path) -> None:
    fixture = read_fixture(path)
    encoder = AnswerEncoder(HEAD, include_usage(fixture["request"][0]))
    written = [encoder.encode(as_chunk(content)) for content in fixture["chunk"]]
    written += [event(from_wire(400, {"error": content}).to_wire()) for content in fixture["error"]] or [DONE]
    lines = [line for line in "".join(written).split("\n\n") if line]
    assert [_content(line) for line in lines] == [_content(line) for line in fixture["event"]]


def _content(line: str) -> Any:
    mark, _, content = line.partition(" ")
    return mark, content if content == "[DONE]" else json.loads(content)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_request_of_a_fixture_survives_both_ways(path: Path) -> None:
    (body,) = read_fixture(path)["request"]
    assert request_body(parse_request(body)) == body


# -- requests ---


def test_every_field_of_a_request_arrives() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    request = Request(
        messages=(
            Message("system", (TextPart("Be brief."),)),
            Message(
                "user",
                (
                    TextPart("a"),
                    ImagePart(b"\xff\xd8jpeg"),
                    AudioPart(b"fLaC..."),
                    VideoPart((Frame(0.5, b"GIF8"), Frame(1.0, b"BM"))),
                    TextPart("b"),
                ),
            ),
            Message("assistant", (), (ToolCall("f", {"x": [1, None]}, "id-1"),)),
            Message("tool", (TextPart("3"),), tool_call_id="id-1", name="f"),
        ),
        model="demo",
        sampling=Sampling(0.5, 3, 0.9, 0.1, 1.2, 7, 20, ("END", "\n\n"), logprobs=2),
        thinking=True,
        image_tokens=280,
        tools=(tool,),
    )
    assert parse_request(json.loads(json.dumps(request_body(request)))) == request


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("json"),
        Constraint("json_schema", {"type": "object", "properties": {"x": {"type": "number"}}}),
        Constraint("regex", "[0-9]{3}"),
        Constraint("choice", ["yes", "no"]),
    ],
    ids=lambda constraint: constraint.kind,
)
def test_the_form_of_an_answer_arrives(constraint: Constraint) -> None:
    request = Request((Message("user", (TextPart("Hi"),)),), constraint=constraint)
    assert parse_request(json.loads(json.dumps(request_body(request)))) == request


@pytest.mark.parametrize("seed", [None, 0, 5, -3, 2**64 - 1, -(2**63)])
def test_choices_have_seeds_of_their_own(seed: int | None) -> None:
    request = parse_request(asked("Hi", n=4, seed=seed))
    seeds = [as_choice(request, index).sampling.seed for index in range(choices_wanted({"n": 4}))]
    assert seeds[0] == seed
    assert len(set(seeds)) == (1 if seed is None else 4)
    assert all(number is None or -(2**63) <= number < 2**64 for number in seeds)


def test_a_completion_is_one_text() -> None:
    body = {"prompt": ["Once"], "max_tokens": 5, "logprobs": 2, "echo": False, "best_of": 1, "stop": "."}
    request = parse_completion(body)
    assert request.messages == (Message("user", (TextPart("Once"),)),)
    assert request.sampling == Sampling(max_tokens=5, stop=(".",), logprobs=2)
    for wrong, named in (({}, "prompt"), ({"prompt": [1, 2]}, "prompt"), ({"prompt": "a", "logprobs": 21}, "logprobs")):
        with pytest.raises(RequestError, match=named):
            parse_completion(wrong)
    with pytest.raises(BadOption, match="suffix"):
        parse_completion({"prompt": "a", "suffix": "b"})


def test_a_bare_request_leaves_every_choice_to_the_checkpoint() -> None:
    request = parse_request(asked("Hi"))
    assert request == Request((Message("user", (TextPart("Hi"),)),))
    assert set(request_body(request)) == {"messages", "stream", "stream_options"}


def test_other_clients_spelling_is_understood() -> None:
    body = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": None, "refusal": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": PIXEL}]},
        ],
        **{"max_tokens": 5, "max_completion_tokens": 6, "stop": "END", "reasoning_effort": "low"},
        **{"n": 1, "logprobs": False, "user": "me", "presence_penalty": 0, "response_format": {"type": "text"}},
        **{"temperature": None, "parallel_tool_calls": True, "tool_choice": "auto"},
    }
    request = parse_request(body)
    assert [message.role for message in request.messages] == ["system", "assistant", "user"]
    assert request.messages[1].tool_calls == (ToolCall("f", {}),)
    assert request.messages[2].parts == (ImagePart(b"\x89PNG\r\n"),)
    assert request.sampling == Sampling(max_tokens=6, stop=("END",))
    assert request.thinking
    assert not parse_request(asked("Hi", reasoning_effort="none")).thinking
    assert not parse_request(asked("Hi", reasoning_effort="high", thinking=False)).thinking


def test_tool_choice_none_hides_the_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert parse_request(asked("Hi", tools=tools)).tools == tuple(tools)
    assert parse_request(asked("Hi", tools=tools, tool_choice="none")).tools == ()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tempurature": 1}, "Did you mean temperature"),
        ({"frobnicate": 1}, "'frobnicate'"),
        ({"temperature": 2.5}, "temperature is 2.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 17}, "n is 17"),
        ({"top_logprobs": 3}, "logprobs is not"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'"),
        ({"regex": ""}, "regex has 0"),
        ({"choice": []}, "choice has 0"),
        ({"choice": [""]}, r"choice\[0\] is empty"),
        ({"choice": ["a"], "regex": "a"}, "given twice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, r"tools\[0\].type"),
        ({"stop": [""]}, r"stop\[0\]"),
        ({"stop": ["x"] * 17}, "17 entries"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadOption, match=named):
        parse_request(asked("Hi", **options))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "messages is missing"),
        ({"messages": "Hi"}, "messages must be a list, not str"),
        ({"messages": []}, "messages has 0 entries"),
        ({"messages": ["Hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [{"content": "Hi"}]}, r"messages\[0\].role is missing"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, r"messages\[0\].role is 'robot'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content must be text"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, r"tool_calls\[0\].function is missing"),
        (asked([{"type": "text"}]), r"content\[0\].text is missing"),
        (asked([{"type": "hologram"}]), "hologram"),
        (asked([{"type": "image_url"}]), "image_url is missing"),
        (asked([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]), "nothing is fetched"),
        (asked([{"type": "image_url", "image_url": "file:///etc/passwd"}]), "nothing is fetched"),
        (asked([{"type": "image_url", "image_url": "data:image/png,plain"}]), "nothing is fetched"),
        (asked([{"type": "video", "frames": [{"image_url": PIXEL}]}]), r"frames\[0\].seconds is missing"),
        (asked("Hi", temperature="hot"), "temperature must be a number, not str"),
        (asked("Hi", seed=True), "seed must be a whole number, not bool"),
        (asked("Hi", max_tokens=1.5), "max_tokens must be a whole number, not float"),
        (asked("Hi", model=3), "model must be text"),
        (asked("Hi", thinking="yes"), "thinking must be true or false"),
        (asked("Hi", response_format="json"), "response_format must be an object"),
        (asked("Hi", response_format={"type": "json_schema"}), "json_schema is missing"),
        (
            asked("Hi", response_format={"type": "json_schema", "json_schema": {"schema": 3}}),
            "schema must be an object",
        ),
        (asked("Hi", choice=[1]), r"choice\[0\] must be text"),
        (asked("Hi", logprobs=1), "logprobs must be true or false"),
        (asked("Hi", stop=[1]), r"stop\[0\] must be text"),
        (asked("Hi", tools=[{"type": "function", "function": {}}]), r"tools\[0\].function.name is missing"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        parse_request(body)
    assert type(caught.value) is RequestError


def test_arguments_of_a_past_call_must_be_json() -> None:
    call = {"function": {"name": "f", "arguments": "{"}}
    with pytest.raises(RequestError, match=r"tool_calls\[0\].function.arguments is not JSON"):
        parse_request({"messages": [{"role": "assistant", "tool_calls": [call]}]})


@pytest.mark.parametrize("data", ["", "%%%", "AAA", "AA AA", "é"])
def test_media_that_are_no_base64_are_refused(data: str) -> None:
    with pytest.raises(BadImage, match=r"messages\[0\].content\[0\].image_url"):
        parse_request(asked([{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}]))
    with pytest.raises(BadAudio, match=r"content\[0\].input_audio.data"):
        parse_request(asked([{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]))


def test_sizes_and_counts_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> bytes:
        pytest.fail("base64 was decoded")

    monkeypatch.setattr(base64, "b64decode", refuse)
    monkeypatch.setattr(wire_media, "MAX_MEDIA_CHARACTERS", 10)
    monkeypatch.setattr(wire_request, "MAX_PARTS", 5)
    with pytest.raises(BadImage, match="characters of base64"):
        parse_request(asked([{"type": "image_url", "image_url": f"data:image/png;base64,{'A' * 11}"}]))
    with pytest.raises(RequestError, match="6 content parts"):
        parse_request(asked([{"type": "image_url", "image_url": PIXEL}] * 6))
    with pytest.raises(RequestError, match="7 content parts"):
        parse_request(asked([{"type": "video", "frames": [{"seconds": 0, "image_url": PIXEL}] * 6}]))
    monkeypatch.setattr(wire_request, "MAX_MESSAGES", 2)
    with pytest.raises(RequestError, match="3 entries"):
        parse_request({"messages": [{"role": "user", "content": "Hi"}] * 3})


# -- raw bodies ---


def test_a_body_is_a_json_object() -> None:
    assert decode_body(b'{"a": [1, "\xc3\xa9"]}') == {"a": [1, "é"]}
    assert decode_body(b"") == {}


@pytest.mark.parametrize("raw", [b"{", b"[1]", b"3", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": "\xff"}', b"\x00"])
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="The body"):
        decode_body(raw)


@pytest.mark.parametrize("raw", [b'{"a": "\\ud800"}', b'{"\\uDFFF": 1}'])
def test_half_a_surrogate_pair_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        decode_body(raw)
    assert decode_body(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_the_number_of_values_is_bounded_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"a": '[],"\\' * 600_000}).encode()
    assert len(decode_body(text)["a"]) == 3_000_000
    monkeypatch.setattr(json, "loads", lambda *args, **kwargs: pytest.fail("it was decoded"))
    with pytest.raises(RequestError, match="values"):
        decode_body(b'{"a": [' + b"[]," * 300_000 + b"[]]}")


def test_a_string_without_an_end_costs_no_more_than_its_length() -> None:
    with pytest.raises(RequestError, match="not JSON"):
        decode_body(b'{"a": "' + rb"\"" * 1_000_000)


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_depth_is_bounded() -> None:
    assert decode_body(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(RequestError, match="nests deeper"):
            decode_body(nested(depth))


def test_stream_is_true_or_false() -> None:
    assert wants_stream({"stream": True})
    assert not wants_stream({"stream": None})
    with pytest.raises(RequestError, match="stream"):
        wants_stream({"stream": "yes"})


# -- answers ---


def test_a_whole_answer_has_openais_form() -> None:
    usage = Usage(text_tokens=3, image_tokens=70, cached_tokens=2, completion_tokens=5, decode_seconds=0.5)
    chunks = [
        Chunk(thinking="Hm."),
        Chunk(text="Four"),
        Chunk(text="."),
        Chunk(tool_call=ToolCall("f", {"x": 1}, "id-1")),
        Chunk(finish="tool_calls", usage=usage),
    ]
    answer = completion(HEAD, [chunks])
    assert answer["object"] == "chat.completion"
    assert (answer["id"], answer["model"], answer["created"]) == ("chatcmpl-1", "demo", 1750000000)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Four."
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert answer["usage"]["total_tokens"] == 78
    assert usage_from_json(answer) == usage


def test_usage_is_sent_only_where_asked_for() -> None:
    last = Chunk(finish="stop", usage=Usage(text_tokens=1))
    assert "usage" not in AnswerEncoder(HEAD).encode(last)
    assert AnswerEncoder(HEAD, include_usage=True).encode(last).count("data: ") == 2


def test_the_first_event_names_the_role_and_only_that() -> None:
    encoder = AnswerEncoder(HEAD)
    assert '"role": "assistant"' in encoder.encode(Chunk(text="a"))
    assert '"role"' not in encoder.encode(Chunk(text="b"))
    assert encoder.encode(Chunk()) == ""


def test_cards_travel_in_the_model_list() -> None:
    card = ModelCard("demo", "Demo", "Small.", ("text", "audio"), False, {"explain": "Explain:"}, "columns")
    (entry,) = json.loads(json.dumps(model_list([card])))["data"]
    assert entry["id"] == "demo"
    assert card_from_json(entry) == card
    assert card_from_json({**entry, "card": {**entry["card"], "of_a_later_version": 1}}) == card


def test_another_servers_model_may_take_anything() -> None:
    assert card_from_json({"id": "gpt", "object": "model"}) == ModelCard("gpt", modalities=("text", "image", "audio"))


@pytest.mark.parametrize(
    "line",
    [
        "data: {",
        "data: 3",
        'data: {"choices": [3]}',
        'data: {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]}',
    ],
)
def test_an_unreadable_event_is_an_error(line: str) -> None:
    with pytest.raises(ServerError, match="cannot be read"):
        AnswerDecoder().feed(line)


def test_other_fields_and_comments_of_a_stream_are_skipped() -> None:
    decoder = AnswerDecoder()
    for line in (
        "",
        ": hello",
        ': {"progress": 3}',
        "event: message",
        "id: 7",
        "data: [DONE]",
        'data: {"choices": []}',
    ):
        assert decoder.feed(line) == []
    assert not decoder.finished


def test_a_call_with_broken_arguments_is_an_error() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"x": '}}
    decoder = AnswerDecoder()
    decoder.feed(f"data: {json.dumps({'choices': [{'delta': {'tool_calls': [call]}}]})}")
    with pytest.raises(ServerError, match="call of f"):
        decoder.end()
