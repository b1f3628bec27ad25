"""The HTTP app of the model server, and :func:`serve`, its life from the socket to the last goodbye.

Listens on 127.0.0.1 and, where asked for, on a Unix socket; wants its token and its own address in ``Host`` on every
route (so that no web page reaches it through a name of its own), and sends no CORS header.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from jupyter_gemma.discovery import ServerInfo, new_token, remove_server_file, write_server_file
from jupyter_gemma.errors import GemmaError, RequestError, ServerStartFailed
from jupyter_gemma.server import document
from jupyter_gemma.server.guard import Guard, error_response
from jupyter_gemma.server.log import log_bug
from jupyter_gemma.server.routes import Routes
from jupyter_gemma.server.worker import Worker
from jupyter_gemma.settings import Settings

logger = logging.getLogger(__name__)
GRACE_SECONDS = 5
STREAM = "text/event-stream"


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
    routes = Routes(worker, info, stop)
    both = ("application/json", STREAM)
    _add(app, "GET /v1/models", routes.models)
    _add(app, "GET /v1/models/{name}", routes.model)
    _add(app, "POST /v1/chat/completions", routes.chat, document.chat_body(), *both)
    _add(app, "POST /v1/completions", routes.complete, document.completion_body(), *both)
    kinds = ("application/json", "text/plain", STREAM)
    _add(app, "POST /v1/audio/transcriptions", routes.transcribe, document.transcription_body(), *kinds)
    _add(app, "GET /gemma/status", routes.status)
    _add(app, "GET /gemma/metrics", routes.metrics, {}, "text/plain")
    _add(app, "POST /gemma/load", routes.load, document.small_body(model=document.TEXT), STREAM)
    _add(app, "POST /gemma/unload", routes.unload)
    _add(app, "POST /gemma/stop", routes.stop, document.small_body(if_idle=document.FLAG))
    text = document.small_body("text", text=document.TEXT, model=document.TEXT)
    _add(app, "POST /gemma/tokenize", routes.tokenize, text)
    _add(app, "POST /gemma/render", routes.render, document.chat_body())
    return app


def _add(
    app: FastAPI, place: str, route: Callable[..., object], extra: dict[str, object] | None = None, *kinds: str
) -> None:
    method, path = place.split()
    app.add_api_route(
        path,
        route,
        methods=[method],
        openapi_extra=extra,
        responses=document.answers(*kinds),
        response_model=None,
        tags=["OpenAI" if path.startswith("/v1") else "Gemma"],
    )


# -- errors ------------------------------------------------------------------------------------------------------


async def _gemma_error(http: HttpRequest, error: Exception) -> Response:
    return error_response(error) if isinstance(error, GemmaError) else await _internal_error(http, error)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    reason = "There is no such route" if status == 404 else "This cannot be done"
    found = RequestError(f"{reason}: {http.method} {http.url.path}.", "GET /openapi.json lists what there is.")
    return error_response(found, status)


async def _internal_error(http: HttpRequest, error: Exception) -> Response:
    log_bug(logger, error)
    return error_response(GemmaError("The model server met an internal error.", "Its log says more."))


# -- life --------------------------------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, ends when ``bored``, and stops the answers before it waits for them."""

    def __init__(
        self,
        config: uvicorn.Config,
        listening: Callable[[], None],
        ending: Callable[[], None],
        bored: Callable[[], bool],
    ) -> None:
        super().__init__(config)
        self._listening = listening
        self._ending = ending
        self._bored = bored

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._listening()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._bored()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ending()
        await super().shutdown(sockets=sockets)


def serve(worker: Worker, settings: Settings, version: str) -> None:
    """Serve until a signal, ``POST /gemma/stop``, or ``idle_exit``; announced in the server file meanwhile.

    Closes ``worker``. In the main thread SIGTERM and SIGINT end it, and are raised again afterwards.

    Raises:
        ServerStartFailed: the port or the Unix socket is taken.
    """
    with _bind(settings.port) as listener, _bind_unix(settings.unix_socket) as unix:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        info = ServerInfo(os.getpid(), url, new_token(), version, time.time())

        def stop() -> None:
            server.should_exit = True

        def bored() -> bool:
            return 0 <= settings.idle_exit < worker.idle_seconds()

        config = uvicorn.Config(
            create_app(worker, info, stop),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        server = _Server(config, lambda: write_server_file(settings, info), worker.cancel_all, bored)
        try:
            server.run(sockets=[listener, *unix])
        finally:
            remove_server_file(settings, info)
            worker.close()


def _bind(port: int) -> socket.socket:
    # With the protocol named, asyncio switches Nagle's algorithm off: 40 ms less for each answer.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    if os.name != "nt":  # there the option would let another process take the port over
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ServerStartFailed(f"Port {port} is taken.", "Choose another, or 0 for any: --port 0") from error
    return listener


@contextmanager
def _bind_unix(path: str) -> Iterator[list[socket.socket]]:
    """A Unix socket that only its owner may use, gone at the end; none for ""."""
    if not path:
        yield []
        return
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_dead_socket(path)
        before = os.umask(0o177)  # chmod afterwards would leave it open for a moment
        try:
            listener.bind(path)
        finally:
            os.umask(before)
    except OSError as error:
        listener.close()
        raise ServerStartFailed(f"The Unix socket {path} cannot be used: {error}.", "Name another path.") from error
    try:
        yield [listener]
    finally:
        listener.close()
        Path(path).unlink(missing_ok=True)


def _remove_dead_socket(path: str) -> None:
    """Delete a socket that nobody listens on any more; anything else at ``path`` stays, and binding fails."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
