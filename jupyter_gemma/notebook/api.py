"""``gemma("…", df, fig)``: questions from Python. The magic asks through the same :meth:`Gemma.ask`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jupyter_gemma.errors import BadAudio
from jupyter_gemma.notebook.context import compose, item_of
from jupyter_gemma.notebook.display import Answer, SilentView, View, close, collect, draft_of, progress_words, view_here
from jupyter_gemma.notebook.items import Item, Limits, text_item
from jupyter_gemma.notebook.options import Options, from_keywords
from jupyter_gemma.types import AudioPart, ImagePart, Message, ModelCard, Progress, Request, TextPart

if TYPE_CHECKING:
    from jupyter_gemma.client import Client

# What a slash command says to models whose card has no words for it.
WORDS = {
    "explain": "Explain this plot: what it shows, its axes with their units, and what stands out.",
    "transcribe": "Transcribe the audio.",
}
EXPLAIN_OTHER_WORDS = "Explain this: what it holds and what stands out."

# An object and what to call it; "" for the words of the prompt itself.
Labelled = tuple[str, Any]


class Conversation:
    """The turns of one notebook, text and media."""

    def __init__(self) -> None:
        self.turns: list[Message] = []

    def add(self, question: Message, answer: Answer) -> None:
        """Remember a question and its answer."""
        self.turns += [question, Message("assistant", (TextPart(answer.text),))]

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()


class Gemma:
    """Asks a model; the client is made at the first question.

    Call it: ``gemma("What stands out?", df, fig, temperature=0)``. Options are the fields of
    :class:`~jupyter_gemma.notebook.options.Options`.
    """

    def __init__(self, client: Client | None = None) -> None:
        self._client = client
        self._view: View = SilentView()

    @property
    def client(self) -> Client:
        """The client of this process.

        Raises:
            BadOption: a setting is wrong.
        """
        if self._client is None:
            from jupyter_gemma.client import Client
            from jupyter_gemma.settings import load_settings

            self._client = Client(load_settings(), on_progress=self._show_start)
        return self._client

    def _show_start(self, progress: Progress) -> None:
        self._view.update(Answer(), progress_words(progress))

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
        view = view_here() if show else SilentView()
        return self.ask(_labelled(prompt, objects), from_keywords(options), view=view)

    def stream(self, prompt: str, *objects: Any, **options: Any) -> Iterator[str]:
        """The answer's text, piece by piece; leaving the loop makes the server stop."""
        chosen = from_keywords(options)
        items = _items(_labelled(prompt, objects), chosen, self._card(chosen.model))
        question = Message("user", compose(item for _, item in items))
        chunks = self.client.stream(_request(chosen, [question]))
        try:
            yield from (chunk.text for chunk in chunks if chunk.text)
        finally:
            close(chunks)

    def explain(self, value: Any, show: bool = True, **options: Any) -> Answer:
        """Explain a figure, picture or table."""
        view = view_here() if show else SilentView()
        return self.command("explain", (type(value).__name__, value), from_keywords(options), view)

    def transcribe(self, clip: Any, rate: float | None = None, show: bool = True, **options: Any) -> Answer:
        """Transcribe a clip: ``(samples, rate)``, a path, bytes, an ``Audio``, or samples with ``rate`` in Hz."""
        view = view_here() if show else SilentView()
        value = clip if rate is None else (clip, rate)
        return self.command("transcribe", (type(clip).__name__, value), from_keywords(options), view)

    def command(
        self, name: str, subject: Labelled, options: Options, view: View, conversation: Conversation | None = None
    ) -> Answer:
        """Ask ``/explain`` or ``/transcribe`` about ``subject``, in the words that the model's card names.

        Raises:
            BadAudio: something else than a clip is to be transcribed.
        """
        self._view = view
        card = self._card(options.model)
        label, value = subject
        item = item_of(value, _limits(options, card))
        kinds = {type(part) for part in item.parts}
        if name == "transcribe" and AudioPart not in kinds:
            raise BadAudio(f"{label} is no clip.", "Hand in (samples, rate), an Audio, or the path of a sound file.")
        words = card.prompts.get(name, WORDS[name]) if {ImagePart, AudioPart} & kinds else EXPLAIN_OTHER_WORDS
        return self._ask(card, [(label, item), ("", text_item(words))], options, view, conversation)

    def ask(
        self, labelled: Sequence[Labelled], options: Options, view: View, conversation: Conversation | None = None
    ) -> Answer:
        """Ask about objects and words in their order, and show the answer in ``view`` as it comes."""
        self._view = view
        return self._ask(self._card(options.model), labelled, options, view, conversation)

    def _ask(
        self,
        card: ModelCard,
        labelled: Sequence[Labelled],
        options: Options,
        view: View,
        conversation: Conversation | None,
    ) -> Answer:
        items = _items(labelled, options, card)
        question = Message("user", compose(item for _, item in items))
        earlier = conversation.turns if conversation and options.history and card.instruct and card.turns else []
        draft = replace(draft_of(items), model=card.name, notice=card.notice, parts=question.parts)
        view.update(draft)
        answer = collect(self.client.stream(_request(options, [*earlier, question])), draft, view)
        if conversation is not None and options.history:
            conversation.add(question, answer)
        return answer

    def _card(self, model: str) -> ModelCard:
        """The card of ``model``, else of the settings' model, else of the server's default, which it names first."""
        cards = {card.name: card for card in self.client.models()}
        name = model or self.client.settings.model or next(iter(cards), "")
        return cards.get(name, ModelCard(name))


def _labelled(prompt: str, objects: Sequence[Any]) -> list[Labelled]:
    return [*((type(value).__name__, value) for value in objects), ("", text_item(prompt))]


def _limits(options: Options, card: ModelCard) -> Limits:
    return Limits(rows=options.rows, table_form=card.table_form)


def _items(labelled: Sequence[Labelled], options: Options, card: ModelCard) -> list[tuple[str, Item]]:
    limits = _limits(options, card)
    return [(label, item_of(value, limits)) for label, value in labelled]


def _request(options: Options, turns: Sequence[Message]) -> Request:
    system = [Message("system", (TextPart(options.system),))] if options.system else []
    return Request(
        messages=(*system, *turns),
        model=options.model,
        sampling=options.sampling,
        thinking=options.think,
        image_tokens=options.image_tokens,
    )


@functools.cache
def process_gemma() -> Gemma:
    """The one :class:`Gemma` of this process, which the magic and ``from jupyter_gemma import gemma`` share."""
    return Gemma()
