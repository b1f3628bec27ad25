"""What all our handlers share: the client, answers in JSON, and streams that end when the browser goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from jupyter_server.base.handlers import APIHandler
from tornado.iostream import StreamClosedError

from jupyter_gemma.client import Client, Hangup
from jupyter_gemma.errors import GemmaError, RequestError
from jupyter_gemma.lab.relay import Tell, relay
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk
from jupyter_gemma.wire.answer import DONE, KEEP_ALIVE, event


class GemmaHandler(APIHandler):
    """Base of the handlers. Blocking calls run beside the event loop."""

    @property
    def gemma_settings(self) -> Settings:
        """The user's settings."""
        settings: Settings = self.settings["gemma_settings"]
        return settings

    def client(self, tell: Tell | None = None) -> Client:
        """A client for the user's settings; it connects only when it is asked something."""
        return Client(self.gemma_settings, tell)

    def body(self) -> dict[str, Any]:
        """The request's JSON object; an empty body is an empty object.

        Raises:
            RequestError: it is something else.
        """
        try:
            body = json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise RequestError(f"The body is not JSON: {error}.") from error
        if not isinstance(body, dict):
            raise RequestError("The body is no JSON object.")
        return body

    async def answer_with(self, ask: Callable[[], Any]) -> None:
        """Send what ``ask`` returns, or its error with the error's own status."""
        try:
            body = await asyncio.to_thread(ask)
        except GemmaError as error:
            self.refuse(error)
        else:
            self.finish(json.dumps(body))

    def refuse(self, error: GemmaError) -> None:
        """Send an error."""
        self.set_status(error.status)
        self.finish(json.dumps(error.to_wire()))


class StreamingHandler(GemmaHandler):
    """A handler that answers with server-sent events."""

    @cached_property
    def _hangup(self) -> Hangup:
        return Hangup()

    def on_connection_close(self) -> None:
        """The browser went away: stop the model too."""
        self._hangup()
        super().on_connection_close()

    async def stream(
        self,
        produce: Callable[[Tell, Hangup], Iterable[Chunk]],
        encode: Callable[[Chunk], str],
        last: Callable[[], str] = str,
    ) -> None:
        """Send the chunks of ``produce`` and what ``last`` gives; an error before the first one has its own status."""
        chunks = relay(lambda tell: produce(tell, self._hangup))
        try:
            first = await anext(chunks, Chunk())
        except GemmaError as error:
            self.refuse(error)
            return
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("Content-Type", "text/event-stream")
        try:
            await self._send(encode(first) if first else KEEP_ALIVE)
            async for chunk in chunks:
                await self._send(encode(chunk) if chunk else KEEP_ALIVE)
            await self._send(last() + DONE)
        except GemmaError as error:
            await self._send(event(error.to_wire()))
        except StreamClosedError:
            return  # on_connection_close has hung up
        finally:
            self._hangup()
            await chunks.aclose()
        self.finish(set_content_type="text/event-stream")

    async def _send(self, text: str) -> None:
        if text and not self._hangup.called:
            self.write(text)
            await self.flush()
