"""One request in, chunks out: build the prompt, read it in chunks, then write token by token.

``GemmaEngine`` is the real :class:`~jupyter_gemma.types.Engine`. A stream looks at ``cancel`` before every
pass over the weights, so Stop costs at most one step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.output import OutputParser
from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.engine.sampling import Sampler, SamplingDefaults, load_defaults
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import Detokenizer, load_tokenizer
from jupyter_gemma.errors import BadOption
from jupyter_gemma.model import ops
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.checkpoint import Quantization, load
from jupyter_gemma.model.decoder import Gemma, Prompt, Span
from jupyter_gemma.model.placement import DeviceName
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import Chunk, FinishReason, ModelCard, Progress, ProgressCallback, Request, Usage

#: A base model never ends its turn: without max_tokens it writes this many tokens.
BASE_MODEL_TOKENS = 128


@dataclass
class _Answer:
    """One request while it is answered: what was read, what was written, and why it ended."""

    prompt: Prompt
    rows: Tensor
    cache: SequenceCache
    sampler: Sampler
    parser: OutputParser
    text: Detokenizer
    stops: frozenset[int]
    limit: int
    usage: Usage
    ids: list[int]
    written: int = 0
    called: bool = False
    finish: FinishReason | None = None

    def accept(self, token: int) -> list[Chunk]:
        """Take the next token; sets ``finish`` when it was the last."""
        if token in self.stops:
            self.finish = "stop"
            return []
        self.written += 1
        self.ids.append(token)
        chunks = self._note_calls(self.parser.feed(self.text.push(token)))
        if self.parser.stopped:
            self.finish = "stop"
        elif self.written >= self.limit:
            self.finish = "length"
        return chunks

    def flush(self) -> list[Chunk]:
        """What the detokenizer and the parser still hold back."""
        tail = self.text.flush()
        chunks = self._note_calls([*(self.parser.feed(tail) if tail else []), *self.parser.finish()])
        if self.called and self.finish == "stop":
            self.finish = "tool_calls"
        return chunks

    def _note_calls(self, chunks: list[Chunk]) -> list[Chunk]:
        self.called = self.called or any(chunk.tool_call for chunk in chunks)
        return chunks


@dataclass
class GemmaEngine:
    """A loaded model that answers requests. Requests share nothing but the weights."""

    card: ModelCard
    model: Gemma
    builder: PromptBuilder
    defaults: SamplingDefaults
    prefill_chunk: int = 512
    _closed: threading.Event = field(default_factory=threading.Event)

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        """See :meth:`jupyter_gemma.types.Engine.stream`."""
        answer = self._open(request)
        begin = time.perf_counter()
        total = len(answer.prompt.ids)
        logits = None
        for end in chunk_ends(answer.prompt, self.prefill_chunk):
            if self._stopped(answer, cancel):
                break
            logits = self._read(answer, end)
            if end < total:
                yield Chunk(progress=Progress("reading", end, total))
        first = time.perf_counter()
        while logits is not None and answer.finish is None and not self._stopped(answer, cancel):
            token = answer.sampler.choose(logits, answer.ids)
            yield from answer.accept(token)
            if answer.finish is None:
                logits = self._write(answer, token)
        yield from answer.flush()
        usage = replace(
            answer.usage,
            completion_tokens=answer.written,
            prefill_seconds=first - begin,
            decode_seconds=time.perf_counter() - first,
        )
        yield Chunk(finish=answer.finish, usage=usage)

    def close(self) -> None:
        """See :meth:`jupyter_gemma.types.Engine.close`. The weights go when the last stream has ended."""
        self._closed.set()

    def _stopped(self, answer: _Answer, cancel: threading.Event) -> bool:
        if cancel.is_set() or self._closed.is_set():
            answer.finish = "cancelled"
        return answer.finish is not None

    @torch.inference_mode()
    def _open(self, request: Request) -> _Answer:
        built = self.builder.build(request)
        room = self.builder.context_length - built.usage.prompt_tokens
        return _Answer(
            prompt=built.prompt,
            rows=self.model.embed(built.prompt),
            cache=SequenceCache.for_model(self.model.config),
            sampler=Sampler(request.sampling, self.defaults, self.model.config.vocab_size),
            parser=OutputParser(request.sampling.stop, tagged=self.card.instruct),
            text=self.builder.tokenizer.stream(),
            stops=frozenset((*self.defaults.eos, *self.model.config.ids.eos)),
            limit=min(room, self._wanted(request)),
            usage=built.usage,
            ids=built.prompt.ids.tolist(),
        )

    def _wanted(self, request: Request) -> int:
        wanted = request.sampling.max_tokens
        if wanted is None:
            return self.builder.context_length if self.card.instruct else BASE_MODEL_TOKENS
        if wanted < 1:
            raise BadOption(f"max_tokens is {wanted}.", "Give a number of at least 1.")
        return wanted

    @torch.inference_mode()
    def _read(self, answer: _Answer, end: int) -> Tensor:
        """Prefill up to ``end``; returns the logits [vocab] of the last row."""
        part = slice(answer.cache.length, end)
        blocks = answer.prompt.blocks()
        span = Span(end - answer.cache.length, answer.cache, None if blocks is None else blocks[part])
        hidden: Tensor = self.model(answer.rows[part], [span])
        return self.model.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def _write(self, answer: _Answer, token: int) -> Tensor:
        """One decode step; returns the logits [vocab] after ``token``."""
        row = self.model.embed(Prompt(torch.tensor([token], device=answer.rows.device)))
        hidden: Tensor = self.model(row, [Span(1, answer.cache)])
        return self.model.logits(hidden)[0]


def chunk_ends(prompt: Prompt, size: int) -> list[int]:
    """Where the chunks of a prompt end: about ``size`` tokens each, and never inside a picture.

    The patches of a picture see each other in both directions, so they are read in one pass.
    """
    total = len(prompt.ids)
    pictures = [(soft.offset, soft.offset + soft.count) for soft in prompt.soft if soft.patches is not None]
    ends = [0]
    while ends[-1] < total:
        end = min(ends[-1] + size, total)
        for first, last in pictures:
            if first < end < last:
                # Stop before the picture if that moves us on, else take it whole.
                end = first if first > ends[-1] else last
        ends.append(end)
    return ends[1:]


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
    progress(Progress("reading the tokenizer"))
    tokenizer = load_tokenizer(path)
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
    builder = PromptBuilder(
        config=config,
        tokenizer=tokenizer,
        template=load_template(path, tokenizer, instruct=card.instruct, architecture=config.architecture),
        media=read_media_config(path, config),
        context_length=min(settings.context_length or config.max_positions, config.max_positions),
    )
    return GemmaEngine(card, loaded.model, builder, load_defaults(path), settings.prefill_chunk)
