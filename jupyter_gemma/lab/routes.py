"""The ``/jupyter-gemma/*`` routes. Each verb is authenticated, and none blocks the event loop."""

from __future__ import annotations

import asyncio
import json
from importlib.metadata import version

from jupyter_server.base.handlers import APIHandler
from tornado import web

from jupyter_gemma.client import Client


class StatusHandler(APIHandler):
    """``GET /jupyter-gemma/status``: the version handshake."""

    @web.authenticated
    async def get(self) -> None:
        """Answer ``{"version": ours, "server": the model server's status, or null where none runs}``."""
        client = Client(self.settings["gemma_settings"])
        status = await asyncio.to_thread(client.status)
        self.finish(json.dumps({"version": version("jupyter-gemma"), "server": status}))
