"""The door: who is let in, and what is turned away before anything of it is decoded."""

from __future__ import annotations

import hmac
import re
from itertools import accumulate

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from jupyter_gemma.errors import GemmaError, NotAuthorized, RequestError
from jupyter_gemma.wire.request import MAX_BODY_BYTES

LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MAX_DEPTH = 64
# Small values cost Python some fifty bytes each, so a body of nothing but them would grow twentyfold.
MAX_VALUES = 500_000
# One that is not closed ends with the text: a search that fails would begin anew at each quote.
STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
ALL_BUT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


class Guard:
    """Lets a request through if it is addressed to this server by a local name and carries the token in its header."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._token = token.encode()
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        target = self.app
        if scope["type"] == "http" and not _is_own(scope):
            error = NotAuthorized("The Host header does not name this server.", "Use the address in the server file.")
            target = error_response(error, 403)
        elif scope["type"] == "http" and (refused := self._refusal(scope)):
            target = error_response(refused)
        await target(scope, receive, send)

    def _refusal(self, scope: Scope) -> GemmaError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if self._token in scope["query_string"]:
            return NotAuthorized(
                "The token stands in the URL, where logs and histories keep it.", "Send it as Authorization: Bearer."
            )
        given = next((value for name, value in headers if name == b"authorization"), b"")
        if not hmac.compare_digest(given, self._expected):
            return NotAuthorized(
                "The token is missing or wrong.", "Send Authorization: Bearer with the server file's token."
            )
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
            return RequestError("The body is compressed.", "Send it as it is.")
        return None


def _is_own(scope: Scope) -> bool:
    """Whether ``Host`` is a local name of this server; over a Unix socket there is no port, and no web page."""
    hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    port = scope["server"][1]
    plain = port in (None, 80)
    names = {f"{name}:{port}" for name in LOCAL_NAMES} | (set(LOCAL_NAMES) if plain else set())
    return len(hosts) == 1 and hosts[0] in names


async def read_body(http: HttpRequest, most: int = MAX_BODY_BYTES) -> bytes:
    """The body.

    Raises:
        RequestError: it is larger than ``most`` bytes; what is announced as larger is not read at all.
    """
    body = bytearray()
    size = int(http.headers.get("content-length") or 0)
    if size <= most:
        async for piece in http.stream():
            body += piece
            size = max(size, len(body))
            if size > most:
                break
    if size > most:
        raise RequestError(f"The body has more than {most} bytes.", "Send fewer or smaller pictures and clips.")
    return bytes(body)


def check_json(raw: bytes) -> None:
    """Look at the brackets and commas of a JSON text, before it is decoded.

    Raises:
        RequestError: it nests deeper than :data:`MAX_DEPTH`, or has more than :data:`MAX_VALUES` values.
    """
    bare = STRING.sub(b"", raw)
    brackets = bare.translate(None, ALL_BUT_BRACKETS)
    if len(brackets) + bare.count(b",") > MAX_VALUES:
        raise RequestError(f"The body has more than {MAX_VALUES} values.", "Send fewer.")
    if max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_DEPTH:
        raise RequestError(f"The body nests deeper than {MAX_DEPTH} levels.", "Send a flatter object.")


def error_response(error: GemmaError, status: int | None = None) -> JSONResponse:
    """``error`` in OpenAI's error body, with its own status or another."""
    return JSONResponse(error.to_wire(), status or error.status)
