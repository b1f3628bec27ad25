"""A blocking stream of chunks, read in a thread of its own and handed to the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable

from jupyter_gemma.errors import GemmaError
from jupyter_gemma.types import Chunk, Progress

KEEP_ALIVE_SECONDS = 5.0

Tell = Callable[[Progress], None]
Produce = Callable[[Tell], Iterable[Chunk]]


async def relay(produce: Produce) -> AsyncGenerator[Chunk | None, None]:
    """The chunks of ``produce(tell)`` as they come; None after each silence. What ``tell`` is told comes as chunks too.

    Leaving early does not end the thread: hang up, so that its call fails.

    Raises:
        GemmaError: what ``produce`` raises; anything else becomes one.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Chunk | GemmaError | None] = asyncio.Queue()

    def put(item: Chunk | GemmaError | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, item)

    threading.Thread(target=_read, args=(produce, put), daemon=True, name="jupyter-gemma-relay").start()
    while True:
        try:
            item = await asyncio.wait_for(queue.get(), KEEP_ALIVE_SECONDS)
        except asyncio.TimeoutError:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, GemmaError):
            raise item
        yield item


def _read(produce: Produce, put: Callable[[Chunk | GemmaError | None], None]) -> None:
    try:
        for chunk in produce(lambda progress: put(Chunk(progress=progress))):
            put(chunk)
        put(None)
    except GemmaError as error:
        put(error)
    except Exception as error:  # noqa: BLE001 the reader would wait for ever
        put(GemmaError(f"The Jupyter Server extension met {error!r}.", "Jupyter's log says more."))
