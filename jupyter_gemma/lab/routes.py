"""The ``/jupyter-gemma/*`` routes. Each verb is authenticated, and none blocks the event loop."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tornado import web

from jupyter_gemma.client import Hangup
from jupyter_gemma.errors import BadOption, GemmaError, RequestError
from jupyter_gemma.lab.conversations import Conversations
from jupyter_gemma.lab.handlers import GemmaHandler, StreamingHandler
from jupyter_gemma.lab.relay import Tell
from jupyter_gemma.lab.remote import remote_of, set_remote
from jupyter_gemma.types import Chunk
from jupyter_gemma.wire.answer import AnswerEncoder, Head, event, progress_comment
from jupyter_gemma.wire.request import parse_request


class StatusHandler(GemmaHandler):
    """``GET status``: the version handshake."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"version", "command", "server": what Client.status says}``; no server is started for it.

        ``command`` is what to type in a terminal of this machine to reach our command line.
        """
        about = {"version": version("jupyter-gemma"), "command": f"{sys.executable} -m jupyter_gemma"}
        await self.answer_with(lambda: {**about, "server": self.client().status()})


class ModelsHandler(GemmaHandler):
    """``GET models``: the models' cards; starts the server."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"models": [card, …], "model": the one that is asked by default}``."""
        await self.answer_with(self._models)

    def _models(self) -> dict[str, Any]:
        cards = [asdict(card) for card in self.client().models()]
        default = self.gemma_settings.model or (cards[0]["name"] if cards else "")
        return {"models": cards, "model": default}


class ChatHandler(StreamingHandler):
    """``POST chat``: an answer as it comes, in the wire form of the model server."""

    @web.authenticated
    async def post(self) -> None:
        """Ask what the body says; going away stops the model."""
        try:
            request = await asyncio.to_thread(lambda: parse_request(self.body()))
        except GemmaError as error:
            self.refuse(error)
            return
        head = Head(f"chatcmpl-{secrets.token_hex(12)}", request.model, int(time.time()))
        encoder = AnswerEncoder(head, include_usage=True)
        await self.stream(lambda tell, hangup: self.client(tell).stream(request, hangup), encoder.encode)


class RenderHandler(GemmaHandler):
    """``POST render``: the exact prompt that a question becomes."""

    @web.authenticated
    async def post(self) -> None:
        """Answer what Client.render says."""
        await self.answer_with(lambda: self.client().render(parse_request(self.body())))


class LoadHandler(StreamingHandler):
    """``POST load {"model": name}``: progress as it comes, then the status."""

    @web.authenticated
    async def post(self) -> None:
        """Load a model; "" is the default one."""
        status: dict[str, Any] = {}

        def load(tell: Tell, hangup: Hangup) -> Iterator[Chunk]:
            name = str(self.body().get("model") or "")
            status.update(self.client(tell).load(name, on_progress=tell))
            return iter(())

        await self.stream(load, _progress_only, lambda: event(status))


class UnloadHandler(GemmaHandler):
    """``POST unload``: free the model's memory."""

    @web.authenticated
    async def post(self) -> None:
        """Answer the status then."""
        await self.answer_with(lambda: self.client().unload())


class StopHandler(GemmaHandler):
    """``POST stop``: end the model server."""

    @web.authenticated
    async def post(self) -> None:
        """Answer whether there was one."""
        await self.answer_with(lambda: {"stopped": self.client().stop_server()})


class RemoteHandler(GemmaHandler):
    """``GET`` and ``PUT remote``: another server to answer. Its key can be set, never read."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"base_url", "has_key"}``."""
        await self.answer_with(lambda: remote_of(self.gemma_settings))

    @web.authenticated
    async def put(self) -> None:
        """Set ``base_url`` and, if it is given, ``api_key``."""
        await self.answer_with(self._set)

    def _set(self) -> dict[str, Any]:
        if not self.settings["gemma_allow_base_url"]:
            raise BadOption("The address is fixed here.", "Ask who runs this Jupyter Server.")
        body = self.body()
        base_url, api_key = body.get("base_url"), body.get("api_key")
        if not isinstance(base_url, str) or not isinstance(api_key, str | None):
            raise RequestError("base_url and api_key must be text.")
        self.settings["gemma_settings"] = set_remote(base_url.strip(), api_key)
        return remote_of(self.gemma_settings)


class ConversationsHandler(GemmaHandler):
    """``GET conversations?search=words``: what is saved, newest first."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"conversations": [summary, …]}``."""
        words = self.get_query_argument("search", "")
        await self.answer_with(lambda: {"conversations": _saved(self).summaries(words)})


class ConversationHandler(GemmaHandler):
    """``GET``, ``PUT``, ``DELETE conversations/<id>``: one conversation."""

    @web.authenticated
    async def get(self, name: str) -> None:
        """Answer the conversation."""
        await self.answer_with(lambda: _saved(self).read(name))

    @web.authenticated
    async def put(self, name: str) -> None:
        """Save it; answer its summary with the new revision."""
        await self.answer_with(lambda: _saved(self).write(name, self.body()))

    @web.authenticated
    async def delete(self, name: str) -> None:
        """Delete it; answer nothing."""
        await self.answer_with(lambda: _saved(self).delete(name))


def _saved(handler: GemmaHandler) -> Conversations:
    saved: Conversations = handler.settings["gemma_conversations"]
    return saved


def _progress_only(chunk: Chunk) -> str:
    return progress_comment(chunk.progress) if chunk.progress else ""


ROUTES: Iterable[tuple[str, type[GemmaHandler]]] = (
    (r"/jupyter-gemma/status", StatusHandler),
    (r"/jupyter-gemma/models", ModelsHandler),
    (r"/jupyter-gemma/chat", ChatHandler),
    (r"/jupyter-gemma/render", RenderHandler),
    (r"/jupyter-gemma/load", LoadHandler),
    (r"/jupyter-gemma/unload", UnloadHandler),
    (r"/jupyter-gemma/stop", StopHandler),
    (r"/jupyter-gemma/remote", RemoteHandler),
    (r"/jupyter-gemma/conversations", ConversationsHandler),
    (r"/jupyter-gemma/conversations/([^/]+)", ConversationHandler),
)
