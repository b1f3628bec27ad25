"""The ``/jupyter-gemma/*`` routes. Each verb is authenticated, and none blocks the event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from jupyter_server.base.handlers import APIHandler
from tornado import web

from jupyter_gemma.client import Client
from jupyter_gemma.errors import GemmaError


class GemmaHandler(APIHandler):
    """Base of the handlers: hands out the client and answers with what it says."""

    @property
    def client(self) -> Client:
        """A client for the user's settings; it connects only when it is asked something."""
        return Client(self.settings["gemma_settings"])

    async def answer_with(self, ask: Callable[[], dict[str, Any]]) -> None:
        """Send what ``ask`` returns, computed beside the event loop, or its error with the error's own status."""
        try:
            body = await asyncio.to_thread(ask)
        except GemmaError as error:
            self.set_status(error.status)
            body = error.to_wire()
        self.finish(json.dumps(body))


class StatusHandler(GemmaHandler):
    """``GET /jupyter-gemma/status``: the version handshake."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"version": ours, "server": what Client.status says}``; no server is started for it."""
        await self.answer_with(lambda: {"version": version("jupyter-gemma"), "server": self.client.status()})
