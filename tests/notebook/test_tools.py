"""Functions that a model may call: declared, called, answered, limited, traced."""

import pytest

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.notebook.bundle import bundle
from jupyter_gemma.notebook.tools import declaration
from jupyter_gemma.types import Chunk, ToolCall


def rain(city: str, days: int = 1) -> dict:
    """Millimetres of rain in a city."""
    if city == "Atlantis":
        raise LookupError("no such city")
    return {"city": city, "mm": 60 * days}


def call(name="rain", **arguments):
    return Chunk(tool_call=ToolCall(name, arguments, f"id-{len(arguments)}"))


@pytest.fixture
def ask(client):
    """Ask with one tool; the client plays one list of chunks a round."""

    def asking(*rounds, **options):
        played = iter(rounds)
        client.stream = _playing(client, played)
        return Gemma(client)("How much rain?", model="big", show=False, tools=(rain,), **options)

    return asking


def _playing(client, rounds):
    def stream(request, hangup=None):
        client.requests.append(request)
        yield from next(rounds)

    return stream


def test_a_declaration_has_name_words_and_types():
    function = declaration(rain)["function"]
    assert (function["name"], function["description"]) == ("rain", "Millimetres of rain in a city.")
    assert function["parameters"]["required"] == ["city"]
    assert function["parameters"]["properties"]["days"]["type"] == "integer"
    with pytest.raises(BadOption, match="cannot be a tool"):
        declaration(odd)


def test_one_function_alone_is_no_list(client):
    with pytest.raises(BadOption, match=r"tools cannot be .* It must be a list of functions"):
        Gemma(client)("How much rain?", tools=rain)


def odd(x: "Missing"):  # noqa: F821
    return x


def test_a_call_is_run_and_answered(ask, client):
    answer = ask([call(city="Rome"), Chunk(finish="tool_calls")], [Chunk(text="60 mm."), Chunk(finish="stop")])
    assert answer.text == "60 mm."
    assert answer.finish == "stop"
    assert [(run.name, run.arguments, run.result) for run in answer.trace] == [
        ("rain", {"city": "Rome"}, '{"city": "Rome", "mm": 60}')
    ]
    asked, result = client.requests[1].messages[-2:]
    assert asked.tool_calls[0].name == "rain"
    assert (result.role, result.tool_call_id, result.text) == ("tool", "id-1", '{"city": "Rome", "mm": 60}')
    assert client.requests[0].tools[0]["function"]["name"] == "rain"
    assert "called rain(city='Rome')" in bundle(answer)["text/plain"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (call(city="Atlantis"), "LookupError: no such city"),
        (call(city="Rome", days="many"), "ValidationError"),
        (call(town="Rome"), "ValidationError"),
        (call("snow", city="Rome"), "There is no tool 'snow'. There are rain."),
    ],
)
def test_what_goes_wrong_goes_to_the_model(ask, made, words):
    answer = ask([made, Chunk(finish="tool_calls")], [Chunk(text="Sorry."), Chunk(finish="stop")])
    assert words in answer.trace[0].result
    assert answer.text == "Sorry."


def test_the_number_of_calls_is_limited(ask, client):
    again = [call(city="Rome"), call(city="Oslo"), Chunk(finish="tool_calls")]
    answer = ask(again, again, [Chunk(text="Enough."), Chunk(finish="stop")], max_calls=3)
    assert len(answer.trace) == 3
    assert [len(request.tools) for request in client.requests] == [1, 1, 0]


def test_an_interrupt_ends_tool_and_answer(client):
    def slow(city: str) -> str:
        raise KeyboardInterrupt

    client.chunks = [Chunk(tool_call=ToolCall("slow", {"city": "Rome"}, "1")), Chunk(finish="tool_calls")]
    with pytest.raises(KeyboardInterrupt):
        Gemma(client)("How much rain?", model="big", show=False, tools=(slow,))
    assert len(client.requests) == 1


def test_answers_with_tools_are_not_kept(ask, client):
    for _ in range(2):
        ask([Chunk(text="60 mm."), Chunk(finish="stop")])
    assert len(client.requests) == 2
