"""One prompt over many values, several at a time: in order, failures collected, to be resumed after an interrupt."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jupyter_gemma.errors import BadOption, GemmaError
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker, Labelled
from jupyter_gemma.notebook.display import SilentView
from jupyter_gemma.notebook.items import text_item
from jupyter_gemma.notebook.options import Options

if TYPE_CHECKING:
    from jupyter_gemma.client import Hangup
    from jupyter_gemma.settings import Settings

DASK = "dask."
# How often a waiting main thread looks up, so that an interrupt and the progress line are seen.
TICK = 0.2


@dataclass
class Mapped:
    """What :meth:`Gemma.map` gives: for each value an answer or a failure, in the order of the values.

    Iterating gives the results: values of the schema's type, else texts; None where there is none.
    """

    values: list[Any] = field(repr=False)
    index: Any = field(default=None, repr=False)
    answers: dict[int, Answer] = field(default_factory=dict, repr=False)
    failures: dict[int, GemmaError] = field(default_factory=dict)
    mapping: Mapping | None = field(default=None, repr=False)

    @classmethod
    def of(cls, values: Iterable[Any]) -> Mapped:
        """Nothing answered yet; the index of a Series is kept."""
        index = getattr(values, "index", None)
        return cls(list(values), None if callable(index) else index)

    @property
    def missing(self) -> list[int]:
        """Positions that have no answer yet, failed ones among them."""
        return [at for at in range(len(self.values)) if at not in self.answers]

    @property
    def results(self) -> list[Any]:
        """The results in order."""
        return [self.answers[at].value if at in self.answers else None for at in range(len(self.values))]

    @property
    def series(self) -> Any:
        """The results as a pandas Series, on the index of the values."""
        import pandas

        return pandas.Series(self.results, index=self.index)

    def resume(self) -> Mapped:
        """Ask what is missing, and what failed, once more."""
        return self.mapping.run(self) if self.mapping else self

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, at: Any) -> Any:
        return self.results[at]

    def __repr__(self) -> str:
        return f"<Mapped {len(self.answers)} of {len(self.values)} answered, {len(self.failures)} failed>"


class MapStopped(KeyboardInterrupt):
    """The user stopped a map; ``result`` holds what had come, and ``result.resume()`` goes on."""

    def __init__(self, result: Mapped) -> None:
        super().__init__(f"Stopped after {len(result.answers)} of {len(result.values)}.")
        self.result = result

    def _render_traceback_(self) -> list[str]:
        return [f"{self} error.result.resume() goes on; what was answered is kept."]


@dataclass
class Mapping:
    """How a map asks."""

    asker: Asker
    prompt: str
    options: Options
    concurrency: int = 8
    show: bool = True

    def run(self, result: Mapped) -> Mapped:
        """Ask for everything that is missing in ``result``, and put it there.

        Raises:
            MapStopped: the user interrupted.
            BadOption: ``concurrency`` is no number above 0.
        """
        if self.concurrency < 1:
            raise BadOption(f"concurrency cannot be {self.concurrency}.", "It must be a whole number above 0.")
        result.mapping = self
        if result.missing:
            self.asker.card(self.options.model)  # starts the server, once and where its progress is seen
            self._run(result, Bar(len(result.missing), self.show))
        return result

    def _run(self, result: Mapped, bar: Bar) -> None:
        stop = Stop()
        with ThreadPoolExecutor(self.concurrency, "gemma-map") as pool:
            try:
                waiting = {pool.submit(self._one, result, at, stop) for at in result.missing}
                self._watch(waiting, result, bar)
            except KeyboardInterrupt as interrupt:
                stop.all()
                pool.shutdown(wait=True, cancel_futures=True)
                bar.finish(result)
                raise MapStopped(result) from interrupt
        bar.finish(result)

    def _watch(self, waiting: set[Future[None]], result: Mapped, bar: Bar) -> None:
        while waiting:
            done, waiting = wait(waiting, timeout=TICK, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            bar.update(result)

    def _one(self, result: Mapped, at: int, stop: Stop) -> None:
        """Answer one value; a failure of the question is collected, anything else ends the map."""
        if stop.asked:
            return
        with stop.watching() as hangup:
            try:
                question = self.asker.question(self._labelled(result.values[at]), self.options)
                answer = self.asker.answer(question, SilentView(), hangup)
                answer.value  # noqa: B018 an answer of the wrong form is a failure
            except GemmaError as error:
                if not stop.asked:
                    result.failures[at] = error
                return
        result.answers[at] = answer
        result.failures.pop(at, None)

    def _labelled(self, value: Any) -> list[Labelled]:
        before, hole, after = self.prompt.partition("{}")
        if not hole:
            before, after = "", self.prompt
        return [("", text_item(before)), ("", value), ("", text_item(after))]


class Stop:
    """Ends all questions that are on their way."""

    def __init__(self) -> None:
        self.asked = False
        self._lock = threading.Lock()
        self._hangups: set[Hangup] = set()

    def all(self) -> None:
        """Hang up everywhere; nothing new begins."""
        self.asked = True
        with self._lock:
            hangups = list(self._hangups)
        for hangup in hangups:
            hangup()

    def watching(self) -> Watched:
        """A hangup that :meth:`all` calls as long as the context lasts."""
        return Watched(self)

    def add(self, hangup: Hangup) -> None:
        """Note a question on its way."""
        with self._lock:
            self._hangups.add(hangup)

    def remove(self, hangup: Hangup) -> None:
        """It is answered."""
        with self._lock:
            self._hangups.discard(hangup)


class Watched:
    """Context of one question."""

    def __init__(self, stop: Stop) -> None:
        from jupyter_gemma.client import Hangup

        self._stop = stop
        self._hangup = Hangup()

    def __enter__(self) -> Hangup:
        self._stop.add(self._hangup)
        return self._hangup

    def __exit__(self, *error: object) -> None:
        self._stop.remove(self._hangup)


class Bar:
    """How far a map is, in one line that is updated."""

    def __init__(self, total: int, show: bool) -> None:
        self._total = total
        self._show = show
        self._started = time.monotonic()
        self._handle: Any = None
        self._next = 0.0

    def update(self, result: Mapped) -> None:
        """Show the state, at most five times a second."""
        if self._show and time.monotonic() >= self._next:
            self._next = time.monotonic() + TICK
            self._write(self.words(result))

    def finish(self, result: Mapped) -> None:
        """Show the last state."""
        if self._show:
            self._write(self.words(result), "\n")

    def words(self, result: Mapped) -> str:
        """ "120 of 200, 1 failed, 12 s left"."""
        to_do = len(set(result.missing) - set(result.failures))
        done = self._total - to_do
        words = [f"{len(result.values) - to_do} of {len(result.values)}"]
        words += [f"{len(result.failures)} failed"] if result.failures else []
        spent = time.monotonic() - self._started
        words += [f"{spent / done * to_do:.0f} s left"] if done and to_do else []
        return ", ".join(words)

    def _write(self, words: str, end: str = "") -> None:
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if not hasattr(shell, "kernel"):
            sys.stderr.write(f"\r{words}   {end}")
            return
        from IPython.display import display

        data = {"text/plain": words}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)


def over_dask(values: Any, settings: Settings, prompt: str, options: dict[str, Any]) -> Any:
    """A Dask bag or Series of results; each worker asks the server of its own machine, or ``settings.base_url``."""
    where = {"base_url": settings.base_url, "api_key": settings.api_key} if settings.base_url else {}
    arguments = (prompt, options, where)
    if hasattr(values, "dtype"):
        return values.map_partitions(ask_partition, *arguments, meta=(values.name, "object"))
    return values.map_partitions(ask_partition, *arguments)


def ask_partition(values: Any, prompt: str, options: dict[str, Any], where: dict[str, Any]) -> Any:
    """What a worker does with its part of a Dask collection: a list, or a Series for a Series.

    Raises:
        GemmaError: the first failure, so that Dask knows of it.
    """
    from jupyter_gemma.client import Client
    from jupyter_gemma.notebook.options import from_keywords
    from jupyter_gemma.settings import load_settings

    options = dict(options)
    concurrency = options.pop("concurrency")
    asker = Asker(Client(load_settings(where)))
    result = Mapping(asker, prompt, from_keywords(options), concurrency, show=False).run(Mapped.of(values))
    for error in result.failures.values():
        raise error
    with suppress(AttributeError):
        return values.__class__(result.results, index=values.index, name=values.name)
    return result.results
