"""From objects and words to an answer: composes the question, looks whether it was answered before, asks, keeps.

The magic, the Python API and ``map`` all ask here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_core.paths import jupyter_data_dir

from jupyter_gemma.errors import BadAudio
from jupyter_gemma.notebook import audio, plots
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.bundle import progress_words
from jupyter_gemma.notebook.cache import AnswerCache
from jupyter_gemma.notebook.context import compose, item_of
from jupyter_gemma.notebook.conversation import Conversation
from jupyter_gemma.notebook.display import SilentView, View, collect, draft_of
from jupyter_gemma.notebook.exchange import ToolRun
from jupyter_gemma.notebook.formats import form_of, schema_for, shown_as
from jupyter_gemma.notebook.items import Item, Limits, text_item
from jupyter_gemma.notebook.options import Options
from jupyter_gemma.notebook.provenance import digest, key_of, record_of
from jupyter_gemma.notebook.tools import declaration, rounds
from jupyter_gemma.notebook.transcript import Wanted, context_words, format_of, spoken, write
from jupyter_gemma.types import (
    AudioPart,
    Chunk,
    ImagePart,
    Message,
    ModelCard,
    Part,
    Progress,
    Request,
    Sampling,
    Segment,
    TextPart,
)

if TYPE_CHECKING:
    from jupyter_gemma.client import Client, Hangup

# What is said to models whose card has no words for it.
EXPLAIN_WORDS = "Explain this plot: what it shows, its axes with their units, and what stands out."
EXPLAIN_OTHER_WORDS = "Explain this: what it holds and what stands out."
TRANSCRIBE_WORDS = "Transcribe the audio."
# The longest clip that a model hears in one question.
ONE_QUESTION_SECONDS = 30.0

# A command takes a file by its name as well; anywhere else a string is text.
MEDIA_SUFFIXES = audio.SUFFIXES | plots.SUFFIXES

# An object and what to call it; "" for the words of the prompt itself.
Labelled = tuple[str, Any]
# The pieces of an answer, and what is done with it before it is shown for the last time.
Pieces = tuple[Iterable[Chunk | ToolRun], Callable[[Answer], Answer]]


@dataclass(frozen=True, slots=True)
class Question:
    """A request that can be sent, the answer to come, and the key under which it is kept ("": it is not).

    ``transcript``: the whole of a clip, however long, is to be written down; None for an ordinary question.
    """

    request: Request
    draft: Answer
    options: Options
    key: str = ""
    transcript: Wanted | None = None

    @property
    def message(self) -> Message:
        """The user's turn."""
        return self.request.messages[-1]


class Asker:
    """Asks through one client, which is made at the first question.

    Args:
        client: asks the server; None: one by the user's settings.
        cache: keeps answers; None: in Jupyter's data folder.
    """

    def __init__(self, client: Client | None = None, cache: AnswerCache | None = None) -> None:
        self._client = client
        self._cache = cache
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

    @property
    def cache(self) -> AnswerCache:
        """The answers that are kept."""
        if self._cache is None:
            self._cache = AnswerCache(Path(jupyter_data_dir()) / "gemma" / "answers")
        return self._cache

    def _show_start(self, progress: Progress) -> None:
        self._view.update(Answer(), progress_words(progress))

    def ask(
        self, labelled: Sequence[Labelled], options: Options, view: View, conversation: Conversation | None = None
    ) -> Answer:
        """Ask about objects and words in their order, and show the answer in ``view`` as it comes."""
        self._view = view
        question = self.question(labelled, options, conversation)
        answer = self.answer(question, view)
        if conversation is not None and options.history:
            conversation.add(question.message, answer)
        return answer

    def question(
        self, labelled: Sequence[Labelled], options: Options, conversation: Conversation | None = None
    ) -> Question:
        """What :meth:`ask` would send; sends nothing but the question which models there are."""
        card = self.card(options.model)
        limits = limits_for(options, card)
        items = [(label, item_of(value, limits)) for label, value in labelled]
        message = Message("user", compose(item for _, item in items))
        return self._question(card, items, [*self._earlier(card, options, conversation), message], options)

    def _earlier(self, card: ModelCard, options: Options, conversation: Conversation | None) -> list[Message]:
        if conversation is None or not options.history:
            return []
        conversation.rewind()
        return conversation.messages() if card.instruct and card.turns else []

    def _question(
        self, card: ModelCard, items: list[tuple[str, Item]], turns: Sequence[Message], options: Options
    ) -> Question:
        schema = schema_for(options)
        form = form_of(options, schema)
        words = [options.system, form.words if card.extras and card.instruct else ""]
        system = "\n".join(filter(None, words))
        asked = Request(
            messages=(*([Message("system", (TextPart(system),))] if system else []), *turns),
            model=card.name,
            sampling=options.sampling,
            thinking=options.think,
            image_tokens=options.image_tokens,
            tools=tuple(map(declaration, options.tools)),
            constraint=form.constraint,
            client=f"kernel {os.getpid()}",
            adapter=options.adapter,
        )
        run_as = {"quantization": self.client.settings.quantization, "device": self.client.settings.device}
        run_as |= {"adapter": self.client.settings.adapter} if self.client.settings.adapter else {}
        key = key_of(asked, card, run_as)
        request = replace(asked, sampling=_with_seed(asked.sampling))
        draft = replace(
            draft_of(items),
            model=card.name,
            notice=card.notice,
            parts=turns[-1].parts,
            format=shown_as(options, schema),
            schema=schema,
            record=record_of(request, card, run_as, key, _saved(items, request.messages, options.keep)),
            request=request,
        )
        # An adapter can be taught again under its name, so what it said before may not be what it says now.
        kept = options.cache and not options.tools and not options.adapter
        return Question(request, draft, options, key if kept else "")

    def answer(self, question: Question, view: View, hangup: Hangup | None = None) -> Answer:
        """Ask ``question``, or find its answer among those kept.

        Raises:
            Stopped: interrupted; ``error.answer`` is what had come.
            GemmaError: what went wrong and the way out.
        """
        kept = self.cache.get(question.key) if question.key else None
        if kept is not None:
            # Whether the inputs are to be saved with it is for this question to say.
            record = {**kept["record"], "inputs": question.draft.record["inputs"]}
            return view.finish(replace(question.draft, **{**kept, "record": record}))
        view.update(question.draft)

        pieces, seal = self._transcript(question, hangup) if question.transcript else self._chat(question, hangup)
        answer = collect(pieces, question.draft, view, seal)
        if question.key and answer.finish == "stop":
            self.cache.put(question.key, answer)
        return answer

    def _chat(self, question: Question, hangup: Hangup | None) -> Pieces:
        def stream(request: Request) -> Generator[Chunk, None, None]:
            yield from self.client.stream(request, hangup)

        options = question.options
        return rounds(stream, question.request, options.tools, options.max_calls), self._sealed

    def _transcript(self, question: Question, hangup: Hangup | None) -> Pieces:
        form = question.transcript.form if question.transcript else ""
        segments: list[Segment] = []

        def seal(answer: Answer) -> Answer:
            return self._sealed(replace(answer, text=write(form, segments)))

        return spoken(self.client.transcribe(question.request, hangup), segments), seal

    def _sealed(self, answer: Answer) -> Answer:
        """``answer`` with the weights that gave it, and its room, in its record, where the server tells."""
        status = self.client.status()
        engine = status.get("engine") or {}
        told = {name: engine[name] for name in ("digest", "quantization", "context_length") if engine.get(name)}
        return replace(answer, record={**answer.record, **told}) if status.get("model") == answer.model else answer

    def explain(
        self, subject: Labelled, options: Options, view: View, conversation: Conversation | None = None
    ) -> Answer:
        """Ask to explain ``subject``, in the words that the model's card names."""
        card = self.card(options.model)
        label, item = _as_item(subject, options, card)
        is_plot = any(isinstance(part, ImagePart) for part in item.parts)
        words = card.prompts.get("explain", EXPLAIN_WORDS) if is_plot else EXPLAIN_OTHER_WORDS
        return self.ask([(label, item), ("", text_item(words))], options, view, conversation)

    def transcribe(
        self,
        subject: Labelled,
        wanted: Wanted,
        options: Options,
        view: View,
        conversation: Conversation | None = None,
    ) -> Answer:
        """Write down what is said in ``subject``.

        A short clip is an ordinary question, in the words that the model's card names; a long one, or one whose
        times are wanted, is cut by the server.

        Raises:
            BadAudio: ``subject`` is no clip.
        """
        self._view = view
        card = self.card(options.model)
        label, item = _as_item(subject, options, card)
        clips = [part for part in item.parts if isinstance(part, AudioPart)]
        if not clips:
            raise BadAudio(f"{label} is no clip.", "Hand in (samples, rate), an Audio, or the path of a sound file.")
        if wanted == Wanted() and audio.seconds_of(clips[0].data) <= ONE_QUESTION_SECONDS:
            words = card.prompts.get("transcribe", TRANSCRIBE_WORDS)
            return self.ask([(label, item), ("", text_item(words))], options, view, conversation)
        words = context_words(wanted) if card.extras else ""
        message = Message("user", (clips[0], *([TextPart(words)] if words else [])))
        question = self._question(card, [(label, item)], [message], options)
        record = {**question.draft.record, "transcript": wanted.form or "text"}
        draft = replace(question.draft, format=format_of(wanted.form), record=record)
        key = question.key and digest([question.key, "transcript", wanted.form])
        return self.answer(replace(question, draft=draft, key=key, transcript=wanted), view)

    def again(self, answer: Answer, view: View, seed: int | None = None) -> Answer:
        """Ask the question of ``answer`` once more, as it was asked or with another ``seed``, and keep nothing."""
        if answer.request is None:
            raise ValueError("The answer does not know its question.")
        request = answer.request
        if seed is not None:
            request = replace(request, sampling=replace(request.sampling, seed=seed))
        record = {**answer.record, "sampling": {**answer.record.get("sampling", {}), "seed": request.sampling.seed}}
        draft = replace(answer, text="", thinking="", finish=None, trace=(), cached="", request=request, record=record)
        return self.answer(Question(request, draft, Options(cache=False)), view)

    def card(self, model: str = "") -> ModelCard:
        """The card of ``model``, else of the settings' model, else of the server's default, which it names first."""
        cards = {card.name: card for card in self.client.models()}
        name = model or self.client.settings.model or next(iter(cards), "")
        return cards.get(name, ModelCard(name))


def limits_for(options: Options, card: ModelCard) -> Limits:
    """The bounds of what is sent, by the user's wish and the model's habits."""
    return Limits(rows=options.rows, table_form=card.table_form, plot_text=card.extras)


def _saved(items: Sequence[Labelled], messages: Sequence[Message], keep: bool) -> tuple[Part, ...]:
    """The parts of a question that are saved in the notebook file: all, with ``keep``; else the user's own words.

    Words and the text of a table are one part of a message; without ``keep`` such a part is not among them.
    """
    mixed = any(isinstance(part, TextPart) for label, item in items if label for part in item.parts)
    told = [message for message in messages if message.role == "system"]
    told += [messages[-1]] if keep or not mixed else []
    return tuple(part for message in told for part in message.parts if keep or isinstance(part, TextPart))


def _as_item(subject: Labelled, options: Options, card: ModelCard) -> tuple[str, Item]:
    label, value = subject
    value = Path(value) if isinstance(value, str) and Path(value).suffix.lower() in MEDIA_SUFFIXES else value
    return label, item_of(value, limits_for(options, card))


def _with_seed(sampling: Sampling) -> Sampling:
    """A seed is drawn where none was given, so that a sampled answer can be repeated."""
    if sampling.seed is not None or sampling.temperature == 0:
        return sampling
    return replace(sampling, seed=random.SystemRandom().randrange(2**31))
