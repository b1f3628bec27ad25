"""The HTTP app of the model server, and :func:`serve`, its life from the socket to the last goodbye.

Listens on 127.0.0.1, wants its token and its own address in ``Host`` on every route (so that no web page reaches it
through a name of its own), sends no CORS header, and bounds the size of what it reads.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from jupyter_gemma.discovery import ServerInfo, new_token, remove_server_file, write_server_file
from jupyter_gemma.errors import GemmaError, NotAuthorized, RequestError, ServerStartFailed
from jupyter_gemma.server.openai_api import completion, decode_body, include_usage, model_list, wants_stream
from jupyter_gemma.server.worker import Job, Worker
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk
from jupyter_gemma.wire.answer import DONE, KEEP_ALIVE, AnswerEncoder, Head, event, progress_comment
from jupyter_gemma.wire.request import MAX_BODY_BYTES, parse_request

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
KEEP_ALIVE_SECONDS = 5.0
GRACE_SECONDS = 5
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def create_app(worker: Worker, info: ServerInfo, stop: Callable[[], None]) -> FastAPI:
    """The app that answers through ``worker``.

    Args:
        worker: owns the engine.
        info: what the server announces; its token is the one that callers must send.
        stop: called by ``POST /gemma/stop``.
    """
    app = FastAPI(title="jupyter-gemma", version=info.version, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, token=info.token)
    app.add_exception_handler(Exception, _internal_error)
    app.add_exception_handler(GemmaError, _gemma_error)
    app.add_exception_handler(HTTPException, _http_error)
    routes = _Routes(worker, info, stop)
    app.add_api_route("/v1/models", routes.models, methods=["GET"])
    app.add_api_route("/v1/chat/completions", routes.chat, methods=["POST"], response_model=None)
    app.add_api_route("/gemma/status", routes.status, methods=["GET"])
    app.add_api_route("/gemma/load", routes.load, methods=["POST"], response_model=None)
    app.add_api_route("/gemma/unload", routes.unload, methods=["POST"])
    app.add_api_route("/gemma/stop", routes.stop, methods=["POST"])
    return app


class Guard:
    """Lets a request through if it is addressed to this server by a local name and carries the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        port = scope["server"][1]
        allowed = {f"{name}:{port}" for name in LOCAL_NAMES} | (set(LOCAL_NAMES) if port == 80 else set())
        if len(hosts) != 1 or hosts[0] not in allowed:
            error = NotAuthorized("The Host header does not name this server.", f"Use http://127.0.0.1:{port}.")
            return error_response(error, status=403)
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            return error_response(
                NotAuthorized(
                    "The token is missing or wrong.", "Send Authorization: Bearer with the server file's token."
                )
            )
        return None


class _Routes:
    """The route functions; each reads its request, gives the worker a job, and writes the answer."""

    def __init__(self, worker: Worker, info: ServerInfo, stop: Callable[[], None]) -> None:
        self._worker = worker
        self._info = info
        self._stop = stop

    async def models(self) -> dict[str, Any]:
        """List the models, OpenAI's form."""
        return model_list(await asyncio.to_thread(self._worker.models))

    async def chat(self, http: HttpRequest) -> Response:
        """Answer a chat completion, streamed or whole."""
        raw = await _read(http)
        # Decoding tens of megabytes would hold up everyone else.
        body = await asyncio.to_thread(decode_body, raw)
        request = await asyncio.to_thread(parse_request, body)
        stream = wants_stream(body)
        card = await asyncio.to_thread(self._worker.find, request.model)
        head = Head(f"chatcmpl-{secrets.token_hex(12)}", card.name, int(time.time()))
        chunks = self._chunks(http, self._worker.answer(replace(request, model=card.name)))
        if stream:
            return await _streamed(chunks, AnswerEncoder(head, include_usage(body)).encode, lambda: "")
        return JSONResponse(completion(head, [chunk async for chunk in chunks if chunk]))

    async def status(self) -> dict[str, Any]:
        """Say what the server does."""
        info = self._info
        return {**self._worker.status(), "pid": info.pid, "version": info.version, "started": info.started}

    async def load(self, http: HttpRequest) -> Response:
        """Load a model; a stream of progress comments, then one event with the status."""
        name = decode_body(await _read(http)).get("model") or ""
        if not isinstance(name, str):
            raise RequestError("model must be text.")
        chunks = self._chunks(http, self._worker.load(name))
        return await _streamed(chunks, _progress_only, lambda: event(self._worker.status()))

    async def unload(self, http: HttpRequest) -> dict[str, Any]:
        """Close the engine once the questions before are answered."""
        async for _ in self._chunks(http, self._worker.unload()):
            pass
        return await self.status()

    async def stop(self) -> dict[str, Any]:
        """End the server."""
        self._stop()
        return {**await self.status(), "state": "stopping"}

    async def _chunks(self, http: HttpRequest, job: Job) -> AsyncGenerator[Chunk | None, None]:
        """The job's chunks, None after each silence; the job is cancelled when the client goes or the reader stops."""
        watch = asyncio.create_task(self._cancel_when_gone(http, job))
        try:
            while True:
                try:
                    chunk = await asyncio.wait_for(job.next(), KEEP_ALIVE_SECONDS)
                except asyncio.TimeoutError:
                    yield None
                    continue
                if chunk is None:
                    return
                yield chunk
        finally:
            watch.cancel()
            self._worker.cancel(job)

    async def _cancel_when_gone(self, http: HttpRequest, job: Job) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self._worker.cancel(job)


async def _streamed(
    chunks: AsyncGenerator[Chunk | None, None], encode: Callable[[Chunk], str], last: Callable[[], str]
) -> Response:
    """An event stream, begun when the first chunk is there: an error before it still gets its HTTP status."""
    first = await anext(chunks, Chunk())

    async def events() -> AsyncIterator[str]:
        try:
            yield encode(first) if first else KEEP_ALIVE
            async for chunk in chunks:
                yield encode(chunk) if chunk else KEEP_ALIVE
            yield last() + DONE
        except GemmaError as error:
            yield event(error.to_wire())
        finally:
            await chunks.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers=STREAM_HEADERS)


def _progress_only(chunk: Chunk) -> str:
    return progress_comment(chunk.progress) if chunk.progress else ""


async def _read(http: HttpRequest) -> bytes:
    """The body.

    Raises:
        RequestError: it is larger than :data:`MAX_BODY_BYTES`; what is announced as larger is not read at all.
    """
    body = bytearray()
    size = int(http.headers.get("content-length") or 0)
    if size <= MAX_BODY_BYTES:
        async for piece in http.stream():
            body += piece
            size = max(size, len(body))
            if size > MAX_BODY_BYTES:
                break
    if size > MAX_BODY_BYTES:
        raise RequestError(
            f"The body has more than {MAX_BODY_BYTES} bytes.", "Send fewer or smaller pictures and clips."
        )
    return bytes(body)


# -- errors ------------------------------------------------------------------------------------------------------


def error_response(error: GemmaError, status: int | None = None) -> JSONResponse:
    """``error`` in OpenAI's error body."""
    return JSONResponse(error.to_wire(), status or error.status)


async def _gemma_error(http: HttpRequest, error: Exception) -> Response:
    return error_response(error) if isinstance(error, GemmaError) else await _internal_error(http, error)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = "There is no such route" if status == 404 else "This cannot be done"
    found = RequestError(f"{reason}: {http.method} {http.url.path}.", "Routes: /v1/models, /v1/chat/completions.")
    return error_response(found, status)


async def _internal_error(http: HttpRequest, error: Exception) -> Response:
    return error_response(GemmaError("The model server met an internal error.", "Its log says more."))


# -- life --------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and stops the answers before it waits for them to end."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening
        self._ending = ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets=sockets)


def serve(worker: Worker, settings: Settings, version: str) -> None:
    """Serve on 127.0.0.1 until a signal or ``POST /gemma/stop``; announced in the server file meanwhile.

    Closes ``worker``. In the main thread SIGTERM and SIGINT end it, and are raised again afterwards.

    Raises:
        ServerStartFailed: the port is taken.
    """
    with _bind(settings.port) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        info = ServerInfo(os.getpid(), url, new_token(), version, time.time())

        def stop() -> None:
            server.should_exit = True

        config = uvicorn.Config(
            create_app(worker, info, stop),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = _Server(config, lambda: write_server_file(settings, info), worker.cancel_all)
        try:
            server.run(sockets=[listener])
        finally:
            remove_server_file(settings, info)
            worker.close()


def _bind(port: int) -> socket.socket:
    listener = socket.socket()
    if os.name != "nt":  # there the option would let another process take the port over
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ServerStartFailed(f"Port {port} is taken.", "Choose another, or 0 for any: --port 0") from error
    return listener
