"""Drafts by looking up: how much faster an answer is that repeats most of its prompt.

Random weights do not repeat anything, so the tokens are dictated; all that the engine computes is the same.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Sequence as List

import torch
from torch import Tensor

from jupyter_gemma.bench.report import Report, milliseconds, rounded
from jupyter_gemma.bench.subject import Options, Subject, packed_folder
from jupyter_gemma.bench.timing import Side, alternate
from jupyter_gemma.engine.answer import Answer
from jupyter_gemma.engine.output import OutputParser
from jupyter_gemma.engine.prompt import BuiltPrompt
from jupyter_gemma.engine.sampling import Sampler, SamplingDefaults
from jupyter_gemma.engine.scheduler import Scheduler
from jupyter_gemma.engine.sequence import Outbox, Sequence
from jupyter_gemma.engine.speculate import Speculation, SpeculationChoice, plan_speculation
from jupyter_gemma.engine.tokenizer import Tokenizer, load_tokenizer
from jupyter_gemma.model.decoder import Prompt
from jupyter_gemma.settings import Settings
from jupyter_gemma.store import find_model
from jupyter_gemma.types import Sampling, Usage

_PROMPT, _STRETCH, _REPEATED = 400, 100, 80
_FIRST_WORD, _WORDS = 512, 512  # ids of the demo's tokenizer that are ordinary text
_CHOICES: tuple[SpeculationChoice, ...] = ("off", "lookup")
_CHUNK, _MEMORY = 512, 10**9


def lookup(chosen: Options) -> Report:
    """An answer as long as its prompt of 400 tokens: 80 of each 100 tokens are the prompt's, then come 20 new ones."""
    subject = Subject.open(packed_folder(chosen.config, chosen))
    with contextlib.closing(Dictation(subject)) as dictation:
        sides: dict[str, Side] = {name: functools.partial(dictation.seconds, name) for name in _CHOICES}
        times = alternate(sides, chosen.seconds, warm_up=0, least=1)
    speedup = times["off"].median / times["lookup"].median
    identical = dictation.texts["off"] == dictation.texts["lookup"]
    same = _share_of_same(dictation.choices["off"], dictation.choices["lookup"])
    return Report(
        "lookup: an answer that repeats 80 % of its prompt",
        ("speculation", "ms a token", "min", "tokens/s", "passes"),
        [
            (
                name,
                milliseconds(found.median / _PROMPT),
                milliseconds(found.best / _PROMPT),
                f"{_PROMPT / found.median:.2f}",
                str(dictation.passes[name]),
            )
            for name, found in times.items()
        ],
        {
            "lookup.speedup": rounded(speedup),
            "lookup.identical_text": identical,
            "lookup.same_choices": rounded(same),
            "lookup.tokens_per_s": rounded(_PROMPT / times["lookup"].median),
        },
        [f"{speedup:.2f} times faster; what the model itself would have chosen is the same in {same:.1%} of places"],
    )


class Dictated(Sampler):
    """Takes the tokens of a script, after choosing the likeliest itself; ``choices`` are its own."""

    def __init__(self, script: List[int], begin: int) -> None:
        super().__init__(Sampling(temperature=0), SamplingDefaults(), 0)
        self._script, self._begin = script, begin
        self.choices: list[int] = []

    def choose(self, logits: Tensor, history: List[int]) -> int:
        """The token of the script for this place."""
        self.choices.append(super().choose(logits, history))
        return self._script[len(history) - self._begin]


class Dictation:
    """Writes the same answer again and again; ``texts``, ``choices`` and ``passes`` of the last one, by name."""

    def __init__(self, subject: Subject) -> None:
        words = torch.randperm(_WORDS, generator=torch.Generator().manual_seed(0)) + _FIRST_WORD
        self._prompt = words[:_PROMPT]
        self._script = _script(self._prompt.tolist(), words[_PROMPT:].tolist())
        self._tokenizer: Tokenizer = load_tokenizer(find_model("demo", Settings()).path)
        self._scheduler = Scheduler(
            subject.model, chunk=_CHUNK, memory=_MEMORY, max_waiting=1, dtype=subject.model.cache_dtype
        )
        self._plans = {name: plan_speculation(name, subject.model, None) for name in _CHOICES}
        self.texts: dict[str, str] = {}
        self.choices: dict[str, list[int]] = {}
        self.passes: dict[str, int] = {}

    def seconds(self, name: SpeculationChoice) -> float:
        """From the first token to the last."""
        sampler = Dictated(self._script, len(self._prompt))
        sequence = self._sequence(sampler, self._plans[name])
        before = self._scheduler.status().steps
        self._scheduler.submit(sequence)
        chunks = list(sequence.outbox.chunks())
        self.texts[name] = "".join(chunk.text for chunk in chunks)
        self.choices[name] = sampler.choices
        self.passes[name] = self._scheduler.status().steps - before
        return next(chunk.usage.decode_seconds for chunk in reversed(chunks) if chunk.usage is not None)

    def close(self) -> None:
        """End the scheduler's thread."""
        self._scheduler.close()

    def _sequence(self, sampler: Sampler, speculation: Speculation | None) -> Sequence:
        answer = Answer(
            ids=self._prompt.tolist(),
            sampler=sampler,
            parser=OutputParser(tagged=False),
            text=self._tokenizer.stream(),
            tokenizer=self._tokenizer,
            stops=frozenset(),
            limit=_PROMPT,
        )
        built = BuiltPrompt(Prompt(self._prompt), Usage(text_tokens=_PROMPT), self._prompt)
        speculator = None if speculation is None else speculation.begin(answer.ids)
        return Sequence(built, answer, threading.Event(), Outbox(self._scheduler.wake), speculator=speculator)


def _script(prompt: List[int], new: List[int]) -> list[int]:
    """The prompt, the end of each stretch replaced by new tokens."""
    fresh = itertools.cycle(new)
    return [token if place % _STRETCH < _REPEATED else next(fresh) for place, token in enumerate(prompt)]


def _share_of_same(left: List[int], right: List[int]) -> float:
    return sum(a == b for a, b in zip(left, right, strict=True)) / len(left)
