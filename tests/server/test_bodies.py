"""Thousands of bodies that are nearly right: each is read, or refused with one of our errors, and nothing else."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from jupyter_gemma.errors import RequestError
from jupyter_gemma.server.body import FORM_KEYS, decode_body, decode_form, parse_transcription
from jupyter_gemma.wire.request import COMPLETION_KEYS, parse_completion, parse_request, request_body
from jupyter_gemma.wire.transcript import upload

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("data:image/png;base64,AA==")
)
names = "messages role content type text image_url url tools function name input_audio data frames seconds arguments"
names += " tool_calls json_schema schema tool_choice"
words = st.sampled_from([*COMPLETION_KEYS, *names.split()]) | st.text(max_size=4)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
roles = st.sampled_from(["user", "system", "assistant", "tool", "robot", 3])
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_audio", "video", "x"])},
    optional={"text": values, "image_url": values, "input_audio": values, "frames": values},
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": st.text(max_size=5) | st.lists(parts, max_size=3) | values},
        optional={"tool_calls": values, "name": values, "tool_call_id": values},
    ),
    max_size=3,
)


def fuzz(count: int, *strategies: Any) -> Any:
    """Run a test on so many examples, the same ones each time."""
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    return lambda test: settings(hypothesis.given(*strategies)(test))


def read(reader: Callable[..., Any], *given: Any) -> Any:
    """What ``reader`` makes of it, None where it refuses with a sentence; another error is a failure."""
    try:
        return reader(*given)
    except RequestError as error:
        if not error.message or error.status != 400:
            raise AssertionError(f"{error!r} says too little") from error
        return None


@fuzz(400, st.dictionaries(words, values, max_size=4), messages)
def test_a_chat_is_read_or_refused(options: dict[str, Any], turns: list[Any]) -> None:
    request = read(parse_request, {**options, "messages": turns})
    assert request is None or parse_request(request_body(request)) == request


@fuzz(300, st.dictionaries(words, values, max_size=5), values)
def test_a_completion_is_read_or_refused(options: dict[str, Any], prompt: Any) -> None:
    read(parse_completion, {**options, "prompt": prompt})


@fuzz(1000, values, st.binary(max_size=6), st.integers(0, 60))
def test_bytes_are_a_json_object_or_refused(value: Any, noise: bytes, at: int) -> None:
    raw = json.dumps(value).encode()
    for body in (raw, raw[:at] + noise + raw[at:], noise):
        found = read(decode_body, body)
        assert found is None or found == json.loads(body or b"{}")


@fuzz(1000, st.binary(max_size=60), st.text(max_size=12), st.sampled_from(["--x", "\r\n", "name=", "--x--", ""]))
def test_bytes_are_a_form_or_refused(raw: bytes, kind: str, piece: str) -> None:
    for content_type in ("multipart/form-data; boundary=x", kind, f"multipart/form-data; boundary={kind}"):
        fields = read(decode_form, piece.encode() + raw + piece.encode(), content_type)
        assert fields is None or all(isinstance(value, bytes) for value in fields.values())


@fuzz(1000, st.dictionaries(st.sampled_from(FORM_KEYS) | st.text(max_size=4), st.binary(max_size=8)))
def test_fields_are_an_order_or_refused(fields: dict[str, bytes]) -> None:
    order = read(parse_transcription, fields)
    if order is not None:
        again = parse_transcription(decode_form(*upload(order.request)))
        assert again.request.messages == order.request.messages
        assert again.stream
