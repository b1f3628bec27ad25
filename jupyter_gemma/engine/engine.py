"""The real :class:`~jupyter_gemma.types.Engine`: a loaded model with everything around it.

A request is prepared in the caller's thread (template, tokens, pictures, grammar) and handed to the scheduler, whose
thread computes it together with all others; the caller reads the chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from accelerate.utils import convert_file_size_to_int

from jupyter_gemma.engine.adapters import Shelf
from jupyter_gemma.engine.answer import Answer
from jupyter_gemma.engine.constraint import GrammarMaker
from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.output import OutputParser
from jupyter_gemma.engine.prompt import BuiltPrompt, PromptBuilder
from jupyter_gemma.engine.sampling import Sampler, SamplingDefaults, load_defaults
from jupyter_gemma.engine.scheduler import Scheduler
from jupyter_gemma.engine.sequence import Outbox, Sequence
from jupyter_gemma.engine.speculate import Speculation, SpeculationChoice, plan_speculation
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.engine.transcribe import transcribe
from jupyter_gemma.errors import BadOption
from jupyter_gemma.model import ops
from jupyter_gemma.model.checkpoint import Quantization, load
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.decoder import Gemma
from jupyter_gemma.model.placement import DeviceName, free_memory
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, EngineStatus, ModelCard, Progress, ProgressCallback, Request, Usage

#: A base model never ends its turn: without max_tokens it writes this many tokens.
BASE_MODEL_TOKENS = 128
#: Of the memory that is free once the model is loaded, what keys and values may take.
CACHE_SHARE = 0.5


class GemmaEngine:
    """Answers requests with one model, many at a time.

    Args:
        prefill_chunk: tokens of a prompt read in one step.
        cache_memory: bytes for keys and values of running and kept conversations.
        max_waiting: requests that may wait for their turn.
        cache_dtype: of stored keys and values; None: what suits the model.
        speculation: how to draft answers; None: not at all.
        adapters: those that requests may name; None: none.
        facts: digest, quantization and weight_bytes, as the status tells them.
    """

    def __init__(
        self,
        card: ModelCard,
        model: Gemma,
        builder: PromptBuilder,
        defaults: SamplingDefaults,
        *,
        prefill_chunk: int = 256,
        cache_memory: int = 10**9,
        max_waiting: int = 256,
        cache_dtype: torch.dtype | None = None,
        facts: EngineStatus | None = None,
        speculation: Speculation | None = None,
        adapters: Shelf | None = None,
    ) -> None:
        self.card = card
        self._facts = facts or EngineStatus()
        self.model = model
        self.builder = builder
        self._defaults = defaults
        self._speculation = speculation
        self._adapters = adapters or Shelf(model, None)
        self._vocab_size = model.config.vocab_size
        self._stops = frozenset((*defaults.eos, *model.config.ids.eos))
        self._grammars = GrammarMaker(builder.tokenizer, self._stops)
        self._scheduler = Scheduler(
            model,
            chunk=prefill_chunk,
            memory=cache_memory,
            max_waiting=max_waiting,
            dtype=cache_dtype or model.cache_dtype,
        )

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.stream`."""
        sequence = self._prepare(request, cancel)
        self._scheduler.submit(sequence)
        yield from sequence.outbox.chunks()

    def transcribe(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.transcribe`."""
        return transcribe(self, request, cancel)

    def render(self, request: Request) -> str:
        """See :meth:`jupyter_gemma.types.Engine.render`."""
        return self.builder.render(request)

    def count(self, request: Request) -> Usage:
        """See :meth:`jupyter_gemma.types.Engine.count`."""
        return self.builder.build(request).usage

    def tokenize(self, text: str) -> list[int]:
        """See :meth:`jupyter_gemma.types.Engine.tokenize`."""
        return self.builder.tokenizer.encode(text)

    def status(self) -> EngineStatus:
        """See :meth:`jupyter_gemma.types.Engine.status`."""
        facts = self._facts
        return replace(
            self._scheduler.status(),
            digest=facts.digest,
            quantization=facts.quantization,
            weight_bytes=facts.weight_bytes,
            context_length=self.builder.context_length,
        )

    def close(self) -> None:
        """See :meth:`jupyter_gemma.types.Engine.close`."""
        self._scheduler.close()

    def _prepare(self, request: Request, cancel: threading.Event) -> Sequence:
        adapter = self._adapters.take(request.adapter)
        built = self.builder.build(request).with_adapter(adapter)
        answer = self._answer(request, built)
        speculator = None if self._speculation is None else self._speculation.begin(answer.ids)
        outbox = Outbox(self._scheduler.wake)
        return Sequence(built, answer, cancel, outbox, request.client, speculator=speculator)

    def _answer(self, request: Request, built: BuiltPrompt) -> Answer:
        grammar = None
        if request.constraint is not None:
            thinking = request.thinking and self.card.instruct
            grammar = self._grammars.make(request.constraint, thinking=thinking, tools=bool(request.tools))
        return Answer(
            ids=built.prompt.ids.tolist(),
            sampler=Sampler(request.sampling, self._defaults, self._vocab_size),
            parser=OutputParser(request.sampling.stop, tagged=self.card.instruct),
            text=self.builder.tokenizer.stream(),
            tokenizer=self.builder.tokenizer,
            stops=self._stops,
            limit=min(self.builder.context_length - built.usage.prompt_tokens, self._wanted(request)),
            grammar=grammar,
            logprobs=request.sampling.logprobs,
        )

    def _wanted(self, request: Request) -> int:
        wanted = request.sampling.max_tokens
        if wanted is None:
            return self.builder.context_length if self.card.instruct else BASE_MODEL_TOKENS
        if wanted < 1:
            raise BadOption(f"max_tokens is {wanted}.", "Give a number of at least 1.")
        return wanted


def cache_memory(setting: str, device: str) -> int:
    """Bytes for keys and values: what the setting says, or a share of what is free on ``device`` now.

    Raises:
        BadOption: not a size.
    """
    if not setting:
        return int(next(iter(free_memory(device).values())) * CACHE_SHARE)
    try:
        return int(convert_file_size_to_int(setting))
    except ValueError:
        raise BadOption(f"cache_memory is {setting!r}.", 'Give a size as "4GB".') from None


def drafter_folder(settings: Settings, card: ModelCard) -> Path | None:
    """The folder of the model's drafter, if it has one here."""
    if settings.drafter:
        return Path(settings.drafter)
    folder = Path(settings.models_dir) / f"{card.name}-assistant"
    return folder if folder.is_dir() else None


def load_builder(path: Path, config: ModelConfig, card: ModelCard, context_length: int = 0) -> PromptBuilder:
    """What makes the prompts of the checkpoint at ``path``; ``context_length`` 0: what the model allows.

    Raises:
        BadCheckpoint: tokenizer, template or processor cannot be used.
    """
    tokenizer = load_tokenizer(path)
    return PromptBuilder(
        config=config,
        tokenizer=tokenizer,
        template=load_template(path, tokenizer, instruct=card.instruct, architecture=config.architecture),
        media=read_media_config(path, config),
        context_length=min(context_length or config.max_positions, config.max_positions),
    )


def load_engine(path: Path, card: ModelCard, settings: Settings, progress: ProgressCallback) -> GemmaEngine:
    """Load a checkpoint with everything around it.

    Args:
        path: a model folder or a GGUF file, see ``model.checkpoint``.
        card: what its users must know.
        settings: device, quantisation, memory limits, context, threads.
        progress: called while weights are read.

    Raises:
        BadCheckpoint, OutOfMemory: see ``model.checkpoint.load``.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    packed = Path(settings.models_dir) / ".packed" / card.name
    loaded = load(
        path,
        quantization=cast(Quantization, settings.quantization),
        device=cast(DeviceName, settings.device),
        max_memory=settings.max_memory or None,
        offload_dir=packed,
        cache_dir=packed,
        progress=progress,
    )
    config = loaded.config
    loaded.model.use(ops.choose_ops(cast(ops.OpsChoice, settings.ops), loaded.model.norm.weight.device.type))
    progress(Progress("reading the tokenizer"))
    builder = load_builder(path, config, card, settings.context_length)
    adapters = Shelf(loaded.model, Path(settings.adapters_dir), settings.adapter)
    adapters.take("")
    return GemmaEngine(
        card,
        loaded.model,
        builder,
        load_defaults(path),
        prefill_chunk=settings.prefill_chunk,
        cache_memory=cache_memory(settings.cache_memory, loaded.model.norm.weight.device.type),
        max_waiting=settings.max_waiting,
        cache_dtype=torch.int8 if settings.cache_type == "int8" else None,
        speculation=plan_speculation(
            cast(SpeculationChoice, settings.speculation), loaded.model, drafter_folder(settings, card)
        ),
        adapters=adapters,
        facts=EngineStatus(
            digest=loaded.digest,
            quantization=next((kind for kind in ("int4", "int8") if kind in loaded.kinds.values()), "none"),
            weight_bytes=loaded.resident_bytes,
        ),
    )
