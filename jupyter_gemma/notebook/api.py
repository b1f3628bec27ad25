"""``gemma("…", df, fig)``: questions from Python."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker, Labelled
from jupyter_gemma.notebook.conversation import Conversation, Turn
from jupyter_gemma.notebook.display import SilentView, View, view_here
from jupyter_gemma.notebook.items import text_item
from jupyter_gemma.notebook.mapping import DASK, Mapped, Mapping, over_dask
from jupyter_gemma.notebook.options import Options, from_keywords
from jupyter_gemma.notebook.teaching import teach
from jupyter_gemma.notebook.transcript import Wanted

if TYPE_CHECKING:
    from jupyter_gemma.client import Client


class Gemma:
    """Asks a model; the client is made at the first question.

    Call it: ``gemma("What stands out?", df, fig, temperature=0)``. Options are the fields of
    :class:`~jupyter_gemma.notebook.options.Options`.
    """

    def __init__(self, client: Client | None = None) -> None:
        self.asker = Asker(client)

    def __call__(self, prompt: str, *objects: Any, show: bool = True, **options: Any) -> Answer:
        """Ask ``prompt`` about ``objects``, which are sent before it.

        Args:
            prompt: sent as it is; braces mean nothing here.
            objects: frames, figures, pictures, clips, anything else as text.
            show: stream the answer into the cell, where there is one.
            options: see :class:`~jupyter_gemma.notebook.options.Options`.

        Raises:
            GemmaError: what went wrong and the way out.
            Stopped: interrupted; ``error.answer`` is what had come.
        """
        return self.asker.ask(_labelled(prompt, objects), from_keywords(options), _view(show))

    async def acall(self, prompt: str, *objects: Any, show: bool = False, **options: Any) -> Answer:
        """As a call, in a cell with ``await``: other tasks go on meanwhile, and cancelling the task stops the model."""
        import asyncio  # not at the top: it loads ssl, which takes longer than all of ours

        from jupyter_gemma.client import Hangup

        question = await asyncio.to_thread(self.asker.question, _labelled(prompt, objects), from_keywords(options))
        hangup = Hangup()
        waiting = asyncio.create_task(asyncio.to_thread(self.asker.answer, question, _view(show), hangup))
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            hangup()
            await asyncio.wait([waiting])
            waiting.exception()  # the broken connection, which nobody waits for
            raise

    def stream(self, prompt: str, *objects: Any, **options: Any) -> Iterator[str]:
        """The answer's text, piece by piece; leaving the loop makes the server stop."""
        question = self.asker.question(_labelled(prompt, objects), from_keywords(options))
        with closing(_closable(self.asker.client.stream(question.request))) as chunks:
            yield from (chunk.text for chunk in chunks if chunk.text)

    def chat(self, **options: Any) -> Chat:
        """A conversation: ``chat = gemma.chat(system="Briefly."); chat("Why?"); chat("And then?")``."""
        return Chat(self.asker, from_keywords(options))

    def explain(self, value: Any, show: bool = True, **options: Any) -> Answer:
        """Explain a figure, picture or table."""
        return self.asker.explain((type(value).__name__, value), from_keywords(options), _view(show))

    def transcribe(
        self,
        clip: Any,
        rate: float | None = None,
        form: str = "",
        language: str = "",
        translate: str = "",
        show: bool = True,
        **options: Any,
    ) -> Answer:
        """Transcribe a clip of any length.

        Args:
            clip: ``(samples, rate)``, a path, bytes, an ``Audio``, or samples with ``rate`` in Hz.
            rate: of ``clip``, if that is samples alone.
            form: "" for text, "srt" or "vtt" for subtitles, "segments" for rows of start, end and text (``.frame``).
            language: what is spoken, in words.
            translate: the language to translate to, in words.
            show: stream the answer into the cell, where there is one.
            options: as of a call.
        """
        value = clip if rate is None else (clip, rate)
        wanted = Wanted(form, language, translate)
        return self.asker.transcribe((type(clip).__name__, value), wanted, from_keywords(options), _view(show))

    def finetune(self, data: Any, out: str, show: bool = True, **keys: Any) -> Path:
        """Teach a model, in a process of its own; the kernel may be interrupted, which ends it, and asked to go on.

        Args:
            data: a JSONL file of conversations; or a table with columns ``prompt`` and ``answer`` and perhaps
                ``image`` and ``audio`` (paths, figures, bytes, whatever a question takes); or a list of answers, which
                are learnt with all they were asked.
            out: name of the adapter, which ``gemma(..., adapter=out)`` then uses.
            show: show how far it is, and the loss at the end.
            keys: of ``jupyter gemma finetune``: ``steps``, ``batch``, ``rate``, ``method``, ``model``, ``valid`` (as
                ``data``), ...

        Returns:
            The folder of the result.

        Raises:
            BadOption: a table without these columns, or an answer that cannot be learnt. ModelError: the process
                failed; its words are told.
        """
        return teach(data, out, self.asker.client.settings, keys, show)

    def map(self, values: Any, prompt: str, concurrency: int = 8, show: bool = True, **options: Any) -> Any:
        """Ask ``prompt`` about each of ``values``, several at a time; ``{}`` is where the value stands.

        Args:
            values: a list, a Series, any iterable of objects; or a Dask bag or Series, which stays lazy.
            prompt: without ``{}`` the value stands before it.
            concurrency: how many questions wait at the server at once.
            show: show how far it is.
            options: as of a call; with ``schema`` the results are values of its type.

        Returns:
            :class:`~jupyter_gemma.notebook.mapping.Mapped`, in the order of ``values``; of Dask's collections the
            same kind of collection, of results.

        Raises:
            MapStopped: interrupted; ``error.result.resume()`` goes on with what is missing.
        """
        if type(values).__module__.startswith(DASK):
            from_keywords(options)
            return over_dask(values, self.asker.client.settings, prompt, {**options, "concurrency": concurrency})
        return Mapping(self.asker, prompt, from_keywords(options), concurrency, show).run(Mapped.of(values))


class Chat:
    """A conversation from Python; calling it asks the next question."""

    def __init__(self, asker: Asker, options: Options) -> None:
        self._asker = asker
        self._options = options
        self._conversation = Conversation()

    def __call__(self, prompt: str, *objects: Any, show: bool = True) -> Answer:
        """Ask ``prompt`` about ``objects``, after all that was said; see :meth:`Gemma.__call__`."""
        return self._asker.ask(_labelled(prompt, objects), self._options, _view(show), self._conversation)

    @property
    def turns(self) -> list[Turn]:
        """Questions and answers so far."""
        return list(self._conversation.turns)

    def reset(self) -> None:
        """Forget all turns."""
        self._conversation.reset()

    def __repr__(self) -> str:
        return f"<Chat of {len(self.turns)} turns>"


def _view(show: bool) -> View:
    return view_here() if show else SilentView()


def _labelled(prompt: str, objects: Sequence[Any]) -> list[Labelled]:
    return [*((type(value).__name__, value) for value in objects), ("", text_item(prompt))]


def _closable(chunks: Iterator[Any]) -> Any:
    """A generator around ``chunks``: closing it closes them."""
    yield from chunks


@functools.cache
def process_gemma() -> Gemma:
    """The one :class:`Gemma` of this process, which the magic and ``from jupyter_gemma import gemma`` share."""
    return Gemma()
