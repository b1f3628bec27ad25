"""The client of the model server: finds or starts it, streams answers, stops them, maps errors.

The one door for notebooks and for Jupyter Server. With ``settings.base_url`` it talks to that OpenAI-compatible
server instead and never starts anything.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jupyter_gemma.discovery import ServerInfo, find_or_start, running_server
from jupyter_gemma.errors import (
    BadOption,
    GemmaError,
    NotAuthorized,
    RequestError,
    ServerBusy,
    ServerError,
    ServerLost,
    UnknownModel,
    UnsupportedInput,
    from_wire,
)
from jupyter_gemma.probe import FEATURES, features_of, foreign_body, shows, trial_of, whole
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, ModelCard, ProgressCallback, Request
from jupyter_gemma.wire.answer import AnswerDecoder, card_from_json
from jupyter_gemma.wire.request import CLIENT_HEADER, MAX_BODY_BYTES, request_body
from jupyter_gemma.wire.transcript import TranscriptDecoder, upload

if TYPE_CHECKING:
    import httpx

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 10.0
# The local server sends a comment every few seconds; another one may compute a long prompt in silence.
SILENCE_SECONDS = 600.0


class Hangup:
    """Ends a call of :class:`Client` from another thread, at once, even while it waits: hand it in, then call it."""

    def __init__(self) -> None:
        self.called = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def __call__(self) -> None:
        """Break the connection; the call raises :class:`~jupyter_gemma.errors.ServerLost`."""
        with self._lock:
            self.called = True
            if self._socket is not None:
                with suppress(OSError):  # it is closed already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def watch(self, name: str, info: Mapping[str, Any]) -> None:
        """Note the socket; httpcore's trace extension calls this for everything that it does."""
        if name in ("connection.connect_tcp.complete", "connection.connect_unix_socket.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.called:
                self()


class Client:
    """Asks the model server. Holds no connection: each call finds the server anew, so a dead one is replaced.

    Args:
        settings: where the server is, or how to start it; ``settings.model`` is asked when a request names none.
        on_progress: told how far starting the server is.
    """

    def __init__(self, settings: Settings, on_progress: ProgressCallback | None = None) -> None:
        self.settings = settings
        self._on_progress = on_progress
        self._name = secrets.token_hex(8)  # clients take turns
        self._abilities: dict[tuple[str, str, str], bool] = {}

    def stream(self, request: Request, hangup: Hangup | None = None) -> Iterator[Chunk]:
        """The answer, piece by piece; progress comes as chunks of its own, the last one has the finish and usage.

        Closing the generator, an exception in it such as KeyboardInterrupt, or calling ``hangup`` from another thread
        makes the server stop computing.

        Raises:
            GemmaError: what the server met, as the same class.
            ServerLost: the connection broke; the next call starts a new server.
            UnsupportedInput: the server of ``base_url`` lacks something that the request uses.
        """
        base, headers = self._address(request.client)
        request = self._named(request)
        body = _encode(self._body(request))
        decoder = AnswerDecoder()
        with _lines("POST", f"{base}/chat/completions", headers, body, hangup) as lines:
            for line in lines:
                yield from decoder.feed(line)
        if not decoder.finished:
            raise _lost("it ended before the answer was complete")
        yield from decoder.end()

    def models(self) -> list[ModelCard]:
        """The cards of the models that the server offers."""
        return [card_from_json(entry) for entry in self._entries()]

    def transcribe(self, request: Request, hangup: Hangup | None = None) -> Iterator[Chunk]:
        """What is said in the one clip of ``request``, however long; its text is context.

        Chunks have progress or a segment; the last one has the finish and usage. Ends and raises as :meth:`stream`.
        """
        base, headers = self._address(request.client)
        request = self._named(request)
        content, kind = upload(request)
        decoder = TranscriptDecoder()
        headers["Content-Type"] = kind
        try:
            with _lines("POST", f"{base}/audio/transcriptions", headers, content, hangup) as lines:
                for line in lines:
                    yield from decoder.feed(line)
        except UnknownModel as error:
            if not self.settings.base_url:
                raise
            raise UnsupportedInput(
                f"The server at {base} writes no transcripts.", "Ask it about the clip, or unset base_url."
            ) from error
        if not decoder.finished:
            raise _lost("it ended before the transcript was complete")

    def render(self, request: Request) -> dict[str, Any]:
        """The exact prompt of ``request`` ("prompt"), and its tokens ("prompt_tokens", "text_tokens", ...).

        Raises:
            GemmaError: as :meth:`stream`. BadOption: with ``base_url``, whose server does not tell.
        """
        request = replace(request, model=request.model or self.settings.model)
        return self._local_call("render", request_body(request))

    def tokenize(self, text: str, model: str = "") -> list[int]:
        """Token ids of ``text`` alone. Raises as :meth:`render`."""
        found: list[int] = self._local_call("tokenize", {"text": text, "model": model or self.settings.model})["tokens"]
        return found

    def abilities(self) -> dict[str, bool]:
        """Whether the server has each of :data:`~jupyter_gemma.probe.FEATURES`; one of ``base_url`` is tried out."""
        model = self._named(Request(())).model
        return {feature: self._has(feature, model) for feature in FEATURES}

    def status(self) -> dict[str, Any]:
        """What the server does, see :meth:`Worker.status`; ``state`` is also "stopped" (none runs) or "remote"."""
        if self.settings.base_url:
            return {"state": "remote", "url": self.settings.base_url, "model": self.settings.model}
        server = running_server(self.settings)
        if server is None:
            return {"state": "stopped", "model": ""}
        return {**_call("GET", f"{server.url}/gemma/status", _authorized(server.token)), "url": server.url}

    def _local_call(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        server = self._local(start=True)
        return _call("POST", f"{server.url}/gemma/{name}", _authorized(server.token), _encode(body))

    def load(self, name: str = "", on_progress: ProgressCallback | None = None) -> dict[str, Any]:
        """Load a model ("": ``settings.model``, else the server's default); the status then.

        Raises:
            GemmaError: why it cannot be loaded, as :meth:`stream`.
            BadOption: with ``base_url``, whose server manages its models itself.
        """
        server = self._local(start=True)
        body = _encode({"model": name or self.settings.model})
        decoder = AnswerDecoder()
        status: dict[str, Any] = {}
        with _lines("POST", f"{server.url}/gemma/load", _authorized(server.token), body) as lines:
            for line in lines:
                for chunk in decoder.feed(line):
                    if chunk.progress and on_progress:
                        on_progress(chunk.progress)
                if line.startswith("data: {"):
                    status = json.loads(line.removeprefix("data: "))
        if not status:
            raise _lost("it ended before the model was loaded")
        return status

    def unload(self) -> dict[str, Any]:
        """Free the model's memory once the answers before are done; the status then."""
        return self._command("unload")

    def stop_server(self) -> bool:
        """End the server; whether there was one."""
        return bool(self._command("stop")["state"] != "stopped")

    def _command(self, name: str) -> dict[str, Any]:
        if (server := self._local(start=False)) is None:
            return {"state": "stopped", "model": ""}
        return _call("POST", f"{server.url}/gemma/{name}", _authorized(server.token))

    def _local(self, start: bool) -> Any:
        """The local server's :class:`ServerInfo`; None if none runs and ``start`` is False."""
        if self.settings.base_url:
            raise BadOption(
                "base_url is set: that server manages its models itself.", "Unset base_url to use the local one."
            )
        return find_or_start(self.settings, self._on_progress) if start else running_server(self.settings)

    def _address(self, name: str = "") -> tuple[str, dict[str, str]]:
        """Base of the OpenAI routes and the headers to send: the key, and ``name`` or our own as the client's."""
        caller = {CLIENT_HEADER: name or self._name}
        if self.settings.base_url:
            key = self.settings.api_key
            return self.settings.base_url.rstrip("/"), {**caller, **(_authorized(key) if key else {})}
        server: ServerInfo = self._local(start=True)
        return f"{server.url}/v1", {**caller, **_authorized(server.token)}

    def _body(self, request: Request) -> dict[str, Any]:
        """The body for the server that is asked; what a foreign one lacks is refused."""
        used = features_of(request)
        if not used or not self.settings.base_url or self._is_ours():
            return request_body(request)
        for feature in used:
            if not self._has(feature, request.model):
                raise UnsupportedInput(
                    f"The server at {self.settings.base_url} {FEATURES[feature]} with the model {request.model}.",
                    "Leave it out, or unset base_url to use the local server.",
                )
        return foreign_body(request)

    def _is_ours(self) -> bool:
        """Whether the server of ``base_url`` is one of ours: its models have cards."""
        key = (self.settings.base_url, "", "")
        if key not in self._abilities:
            self._abilities[key] = any("card" in entry for entry in self._entries())
        return self._abilities[key]

    def _has(self, feature: str, model: str) -> bool:
        """Whether the server has ``feature``; one of ``base_url`` is tried out, once."""
        if not self.settings.base_url or self._is_ours():
            return True
        key = (self.settings.base_url, model, feature)
        if key not in self._abilities:
            self._abilities[key] = self._try(feature, model)
        return self._abilities[key]

    def _try(self, feature: str, model: str) -> bool:
        trial = trial_of(feature)
        if trial is None:
            return False
        try:
            answer = self._whole(replace(trial.request, model=model))
        except (ServerLost, ServerBusy, NotAuthorized, UnknownModel):
            raise
        except GemmaError:  # llama-cpp-python's server has status 500 for a part that it does not know
            return False
        return shows(feature, answer, self._whole(replace(trial.plain, model=model)) if trial.plain else None)

    def _whole(self, request: Request) -> dict[str, Any]:
        base, headers = self._address()
        return _call("POST", f"{base}/chat/completions", headers, _encode(whole(foreign_body(request))))

    def _entries(self) -> list[dict[str, Any]]:
        base, headers = self._address()
        return list(_call("GET", f"{base}/models", headers).get("data") or [])

    def _named(self, request: Request) -> Request:
        """``request`` with the model that the settings name; a foreign server needs some name."""
        name = request.model or self.settings.model
        if not name and self.settings.base_url:
            cards = self.models()
            if not cards:
                raise ServerError(
                    f"The server at {self.settings.base_url} offers no model.", "Set model to a name it knows."
                )
            name = cards[0].name
        return replace(request, model=name)


def _authorized(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _encode(body: dict[str, Any]) -> bytes:
    try:
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"The question cannot be sent as JSON: {error}.") from error
    if len(content) > MAX_BODY_BYTES:
        raise RequestError(
            f"The question takes {len(content)} bytes, more than {MAX_BODY_BYTES}.",
            "Send fewer or smaller pictures and clips.",
        )
    return content


def _call(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> dict[str, Any]:
    with _lines(method, url, headers, body) as lines:
        text = "\n".join(lines)
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise ServerError(f"{url} did not answer with JSON.", "Check base_url.") from error
    if not isinstance(answer, dict):
        raise ServerError(f"{url} did not answer with an object.", "Check base_url.")
    return answer


@contextmanager
def _lines(
    method: str, url: str, headers: dict[str, str], body: bytes | None = None, hangup: Hangup | None = None
) -> Iterator[Iterator[str]]:
    """The lines of a successful answer, as they come; leaving early closes the connection.

    This machine's own server is reached without the environment's proxies, and without loading certificates.
    """
    import httpx

    timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
    headers = {"Content-Type": "application/json", **headers}
    extensions = {"trace": hangup.watch} if hangup else {}
    try:
        local = httpx.URL(url).host in LOCAL_HOSTS
        with (
            httpx.Client(trust_env=not local, verify=not local, timeout=timeout) as client,
            client.stream(method, url, headers=headers, content=body, extensions=extensions) as response,
        ):
            if not response.is_success:
                raise _refused(response)
            yield _split(response.iter_bytes())
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise BadOption(f"{url} is no address: {error}.", "Correct base_url: http://host:port/v1.") from error
    except httpx.ConnectError as error:
        raise _lost(f"{url} cannot be reached") from error
    except httpx.TimeoutException as error:
        raise _lost("it does not answer") from error
    except httpx.HTTPError as error:
        raise _lost("the connection broke") from error


def _split(pieces: Iterator[bytes]) -> Iterator[str]:
    """Lines that end in a line feed, and only there: httpx would also split at U+2028 inside a text."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace").rstrip("\r") for line in lines)
    yield rest.decode("utf-8", "replace")


def _refused(response: httpx.Response) -> Exception:
    response.read()
    try:
        body = response.json()
    except ValueError:
        body = None
    return from_wire(response.status_code, body)


def _lost(reason: str) -> ServerLost:
    return ServerLost(f"The model server was lost: {reason}.", "Ask again: a local server is then started anew.")
