"""Questions through the Jupyter Server routes: streamed, cancelled, refused."""

import asyncio
import json

import pytest
from tornado.httpclient import HTTPClientError

from jupyter_gemma.echo import Reply
from jupyter_gemma.errors import PromptTooLong
from jupyter_gemma.lab import relay
from jupyter_gemma.types import Chunk
from jupyter_gemma.wire.answer import AnswerDecoder

QUESTION = {"messages": [{"role": "user", "content": "one two three"}]}


def chunks_of(body: bytes) -> list[Chunk]:
    decoder = AnswerDecoder()
    found = [chunk for line in body.decode().split("\n") for chunk in decoder.feed(line)]
    assert decoder.finished
    return found + decoder.end()


async def ask(jp_fetch, body=None, **options):
    return await jp_fetch("jupyter-gemma", "chat", method="POST", body=json.dumps(body or QUESTION), **options)


async def test_an_answer_comes_in_pieces_with_its_usage(jp_fetch, model_server) -> None:
    engine = model_server()
    pieces: list[bytes] = []
    reply = await ask(jp_fetch, streaming_callback=pieces.append)
    assert reply.headers["Content-Type"] == "text/event-stream"
    chunks = chunks_of(b"".join(pieces))
    assert "".join(chunk.text for chunk in chunks) == "one two three"
    assert chunks[-1].finish == "stop"
    assert chunks[-1].usage.completion_tokens == 3
    assert len(engine.requests) == 1


async def test_options_and_media_arrive(jp_fetch, model_server) -> None:
    engine = model_server()
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    content = [picture, {"type": "text", "text": "What is this?"}]
    await ask(jp_fetch, {"messages": [{"role": "user", "content": content}], "temperature": 0.5, "image_tokens": 70})
    request = engine.requests[0]
    assert [type(part).__name__ for part in request.messages[0].parts] == ["ImagePart", "TextPart"]
    assert (request.sampling.temperature, request.image_tokens) == (0.5, 70)


async def test_a_wrong_option_is_named(jp_fetch, model_server) -> None:
    with pytest.raises(HTTPClientError) as caught:
        await ask(jp_fetch, {**QUESTION, "temprature": 1})
    assert caught.value.code == 400
    assert "temperature" in json.loads(caught.value.response.body)["error"]["fix"]


async def test_no_server_is_an_error_before_the_stream(jp_fetch) -> None:
    with pytest.raises(HTTPClientError) as caught:
        await ask(jp_fetch)
    assert caught.value.code == 503
    assert json.loads(caught.value.response.body)["error"]["code"] == "server_not_running"


async def test_an_error_in_the_middle_is_an_event(jp_fetch, model_server) -> None:
    model_server([Reply((Chunk(text="so far"),), error=PromptTooLong("Too long.", "Shorten it."))])
    pieces: list[bytes] = []
    await ask(jp_fetch, streaming_callback=pieces.append)
    with pytest.raises(PromptTooLong):
        chunks_of(b"".join(pieces))


@pytest.mark.parametrize("delay", [0.05, 30.0], ids=["while it writes", "before the first word"])
async def test_going_away_stops_the_model(
    jp_base_url, http_server, http_server_port, jp_auth_header, model_server, wait_until, delay
) -> None:
    engine = model_server([Reply(tuple(Chunk(text="word ") for _ in range(1000)), delay)])
    _, writer = await asyncio.open_connection("127.0.0.1", http_server_port[1])
    body = json.dumps(QUESTION).encode()
    head = f"POST {jp_base_url}jupyter-gemma/chat HTTP/1.1\r\nHost: 127.0.0.1:{http_server_port[1]}\r\n"
    head += f"Authorization: {jp_auth_header['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await asyncio.to_thread(wait_until, lambda: engine.steps > (2 if delay < 1 else 0))
    writer.close()
    await asyncio.to_thread(wait_until, lambda: engine.cancelled)
    assert engine.steps < 100


async def test_silence_is_filled(jp_fetch, model_server, monkeypatch) -> None:
    monkeypatch.setattr(relay, "KEEP_ALIVE_SECONDS", 0.05)
    model_server([Reply((Chunk(text="late"),), 0.3)])
    pieces: list[bytes] = []
    await ask(jp_fetch, streaming_callback=pieces.append)
    assert b": waiting\n\n" in pieces
    assert "".join(chunk.text for chunk in chunks_of(b"".join(pieces))) == "late"


async def test_models_load_and_unload(jp_fetch, model_server) -> None:
    model_server()
    listed = json.loads((await jp_fetch("jupyter-gemma", "models")).body)
    assert (listed["models"][0]["name"], listed["model"]) == ("echo", "echo")
    pieces: list[bytes] = []
    await jp_fetch("jupyter-gemma", "load", method="POST", body="{}", streaming_callback=pieces.append)
    assert b'"state": "ready"' in b"".join(pieces)
    unloaded = await jp_fetch("jupyter-gemma", "unload", method="POST", body="{}")
    assert json.loads(unloaded.body)["state"] == "empty"


async def test_four_streams_at_once(jp_fetch, model_server) -> None:
    model_server([Reply((Chunk(text="a"),), 0.05) for _ in range(8)])
    replies = await asyncio.gather(*(ask(jp_fetch) for _ in range(8)))
    assert ["".join(chunk.text for chunk in chunks_of(reply.body)) for reply in replies] == ["a"] * 8


async def test_the_exact_prompt_is_shown_with_its_tokens(jp_fetch, model_server) -> None:
    engine = model_server()
    reply = await jp_fetch("jupyter-gemma", "render", method="POST", body=json.dumps(QUESTION))
    said = json.loads(reply.body)
    assert said["prompt"] == "user: one two three\n"
    assert said["text_tokens"] == 3
    assert not engine.requests
