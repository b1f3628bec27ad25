"""The routes: each reads its request, gives the worker jobs, and writes what they bring."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from jupyter_gemma.discovery import ServerInfo
from jupyter_gemma.errors import BadOption, GemmaError, RequestError, UnsupportedInput
from jupyter_gemma.server import openai_api
from jupyter_gemma.server.body import decode_body, decode_form, include_usage, parse_transcription, wants_stream
from jupyter_gemma.server.guard import read_body
from jupyter_gemma.server.log import prompts
from jupyter_gemma.server.memory import memory_bytes
from jupyter_gemma.server.worker import Job, Worker
from jupyter_gemma.types import Chunk, Engine, ModelCard, Request, Segment, Usage
from jupyter_gemma.wire.answer import DONE, KEEP_ALIVE, AnswerEncoder, Head, card_json, event, progress_comment
from jupyter_gemma.wire.request import CLIENT_HEADER, as_choice, choices_wanted, parse_completion, parse_request
from jupyter_gemma.wire.transcript import transcript_done, transcript_event

logger = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 5.0
MAX_AUDIO_BYTES = 256 * 2**20
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

# A chunk of one of several jobs, by its number; None: all have been silent for a while.
Piece = tuple[int, Chunk] | None
Pieces = AsyncGenerator[Piece, None]
Whole = Callable[[Head, list[list[Chunk]]], dict[str, Any]]


@dataclass
class _Answer:
    """What one request has brought so far, for its last event and its line in the log."""

    route: str
    card: ModelCard
    begin: float = field(default_factory=time.monotonic)
    usages: list[Usage] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    finish: str = "failed"

    def note(self, chunk: Chunk) -> None:
        """Keep what the end needs of a chunk."""
        if chunk.usage:
            self.usages.append(chunk.usage)
        if chunk.segment:
            self.segments.append(chunk.segment)
        self.finish = chunk.finish or self.finish
        if chunk.text:
            prompts.debug("answer: %s", chunk.text)

    @property
    def usage(self) -> Usage | None:
        """The usage of all choices."""
        return openai_api.total_usage(self.usages)

    def log(self) -> None:
        """Write the line."""
        usage = self.usage or Usage()
        counts = (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)
        text = "%s %s: %s after %.2f s, tokens: %d read (%d of them known), %d written"
        logger.info(text, self.route, self.card.name, self.finish, time.monotonic() - self.begin, *counts)


class Routes:
    """The route functions.

    Args:
        worker: owns the engine.
        info: what the server announces.
        stop: ends the server.
    """

    def __init__(self, worker: Worker, info: ServerInfo, stop: Callable[[], None]) -> None:
        self._worker = worker
        self._info = info
        self._stop = stop

    # -- OpenAI's --

    async def models(self) -> dict[str, Any]:
        """List the models; each entry has its card."""
        return openai_api.model_list(await asyncio.to_thread(self._worker.models))

    async def model(self, name: str) -> dict[str, Any]:
        """One entry of that list."""
        return card_json(await asyncio.to_thread(self._worker.find, name))

    async def chat(self, http: HttpRequest) -> Response:
        """Answer a chat, streamed or whole, once or several times."""
        # Decoding tens of megabytes would hold up everyone else.
        body, request = await asyncio.to_thread(_parse_chat, await read_body(http))
        card = await self._card(request)
        encoders = [AnswerEncoder(_head("chatcmpl", card), index=index) for index in range(choices_wanted(body))]
        return await self._complete(http, body, request, card, encoders, openai_api.completion)

    async def complete(self, http: HttpRequest) -> Response:
        """Continue a text with a base model."""
        body = decode_body(await read_body(http))
        request = parse_completion(body)
        card = await self._card(request)
        if card.instruct:
            raise UnsupportedInput(
                f"{card.name} answers questions and does not continue texts.", "Use /v1/chat/completions."
            )
        encoders = [openai_api.TextEncoder(_head("cmpl", card), index=index) for index in range(choices_wanted(body))]
        return await self._complete(http, body, request, card, encoders, openai_api.text_completion)

    async def _complete(
        self,
        http: HttpRequest,
        body: dict[str, Any],
        request: Request,
        card: ModelCard,
        encoders: Sequence[AnswerEncoder],
        whole: Whole,
    ) -> Response:
        stream, with_usage = wants_stream(body), include_usage(body)
        request = replace(request, model=card.name, client=http.headers.get(CLIENT_HEADER, "")[:100])
        prompts.debug("question: %s", request)
        answer = _Answer(http.url.path, card)
        jobs = [self._worker.answer(as_choice(request, index)) for index in range(len(encoders))]
        pieces = self._pieces(http, jobs, answer)
        if not stream:
            return JSONResponse(whole(encoders[0].head, await _collect(pieces, len(jobs))))

        def last() -> str:
            return encoders[0].usage_event(answer.usage) if with_usage and answer.usage else ""

        return await _streamed(pieces, lambda index, chunk: encoders[index].encode(chunk), last)

    async def transcribe(self, http: HttpRequest) -> Response:
        """Write down what is said in an uploaded clip of any length."""
        raw = await read_body(http, MAX_AUDIO_BYTES)
        fields = await asyncio.to_thread(decode_form, raw, http.headers.get("content-type", ""))
        order = parse_transcription(fields)
        card = await self._card(order.request)
        if "audio" not in card.modalities:
            raise UnsupportedInput(f"{card.name} takes no sound.", "Name a model that does, for example demo.")
        client = http.headers.get(CLIENT_HEADER, "")[:100]
        answer = _Answer(http.url.path, card)
        job = self._worker.transcribe(replace(order.request, model=card.name, client=client))
        pieces = self._pieces(http, [job], answer)
        if order.stream:
            return await _streamed(
                pieces,
                lambda _, chunk: transcript_event(chunk),
                lambda: transcript_done(answer.segments, answer.usage),
            )
        await _collect(pieces, 1)
        found = openai_api.transcript(answer.segments, order.form, answer.usage)
        return PlainTextResponse(found) if isinstance(found, str) else JSONResponse(found)

    # -- ours --

    async def status(self) -> dict[str, Any]:
        """Say what the server does."""
        info = self._info
        about = {"pid": info.pid, "version": info.version, "started": info.started, "memory_bytes": memory_bytes()}
        return {**self._worker.status(), **about}

    async def metrics(self) -> Response:
        """The status for Prometheus."""
        return PlainTextResponse(openai_api.metrics(await self.status()), media_type="text/plain; version=0.0.4")

    async def load(self, http: HttpRequest) -> Response:
        """Load a model; a stream of progress comments, then one event with the status."""
        name = _text(decode_body(await read_body(http)), "model")
        pieces = self._pieces(http, [self._worker.load(name)])
        return await _streamed(pieces, _progress_only, lambda: event(self._worker.status()))

    async def unload(self, http: HttpRequest) -> dict[str, Any]:
        """Close the engine once the questions before are answered."""
        await _collect(self._pieces(http, [self._worker.unload()]), 1)
        return await self.status()

    async def stop(self, http: HttpRequest) -> dict[str, Any]:
        """End the server; with ``if_idle`` only if it has nothing to do."""
        body = decode_body(await read_body(http))
        if body.get("if_idle") and self._worker.idle_seconds() == 0:
            return await self.status()
        self._stop()
        return {**await self.status(), "state": "stopping"}

    async def tokenize(self, http: HttpRequest) -> dict[str, Any]:
        """The token ids of a text."""
        body = decode_body(await read_body(http))
        text = _text(body, "text")
        tokens = await self._call(http, _text(body, "model"), lambda engine: engine.tokenize(text))
        return {"tokens": tokens, "count": len(tokens)}

    async def render(self, http: HttpRequest) -> dict[str, Any]:
        """The exact prompt of a chat's body, and its tokens by modality."""
        _, request = await asyncio.to_thread(_parse_chat, await read_body(http))

        def act(engine: Engine) -> dict[str, Any]:
            return openai_api.rendered(engine.render(request), engine.count(request))

        found: dict[str, Any] = await self._call(http, request.model, act)
        return found

    async def _call(self, http: HttpRequest, model: str, action: Callable[[Engine], object]) -> Any:
        job = self._worker.call(model, action)
        await _collect(self._pieces(http, [job]), 1)
        return job.result

    # -- jobs --

    async def _card(self, request: Request) -> ModelCard:
        return await asyncio.to_thread(self._worker.find, request.model)

    async def _pieces(self, http: HttpRequest, jobs: Sequence[Job], answer: _Answer | None = None) -> Pieces:
        """What the jobs bring, as it comes; they are cancelled when the client goes or the reader stops."""
        watch = asyncio.create_task(self._cancel_when_gone(http, jobs))
        waiting = {asyncio.ensure_future(job.next()): index for index, job in enumerate(jobs)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    yield None
                for task in done:
                    index = waiting.pop(task)
                    chunk = task.result()
                    if chunk is None:
                        continue
                    waiting[asyncio.ensure_future(jobs[index].next())] = index
                    if answer:
                        answer.note(chunk)
                    yield index, chunk
        finally:
            for task in (watch, *waiting):
                task.cancel()
            self._cancel(jobs)
            if answer:
                answer.log()

    async def _cancel_when_gone(self, http: HttpRequest, jobs: Sequence[Job]) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._cancel(jobs)

    def _cancel(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._worker.cancel(job)


def _parse_chat(raw: bytes) -> tuple[dict[str, Any], Request]:
    body = decode_body(raw)
    return body, parse_request(body)


def _head(kind: str, card: ModelCard) -> Head:
    return Head(f"{kind}-{secrets.token_hex(12)}", card.name, int(time.time()))


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str):
        raise RequestError(f"{key} must be text.")
    if unknown := set(body) - {"text", "model"}:
        raise BadOption(f"There is no option {min(unknown)[:50]!r}.", "Leave it out.")
    return value


async def _collect(pieces: Pieces, count: int) -> list[list[Chunk]]:
    """All chunks of each of ``count`` jobs."""
    found: list[list[Chunk]] = [[] for _ in range(count)]
    async for piece in pieces:
        if piece:
            found[piece[0]].append(piece[1])
    return found


async def _streamed(pieces: Pieces, encode: Callable[[int, Chunk], str], last: Callable[[], str]) -> Response:
    """An event stream, begun when the first chunk is there: an error before it still gets its HTTP status."""
    first = await anext(pieces, None)

    async def events() -> AsyncIterator[str]:
        try:
            yield encode(*first) if first else KEEP_ALIVE
            async for piece in pieces:
                yield encode(*piece) if piece else KEEP_ALIVE
            yield last() + DONE
        except GemmaError as error:
            yield event(error.to_wire())
        finally:
            await pieces.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers=STREAM_HEADERS)


def _progress_only(index: int, chunk: Chunk) -> str:
    return progress_comment(chunk.progress) if chunk.progress else ""
