"""What is measured: a model of random weights of a given shape, in a packed file, and the steps it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.cache import SequenceCache
from jupyter_gemma.model.checkpoint import LoadedModel, load, plan_kinds
from jupyter_gemma.model.config import AttentionConfig, AudioConfig, ModelConfig, VisionConfig
from jupyter_gemma.model.decoder import Prompt, Span
from jupyter_gemma.model.ops import WeightKind, choose_ops
from jupyter_gemma.model.packed import PACKED_NAME, PackedSource, write_packed
from jupyter_gemma.model.random import GEMMA4_12B, RandomSource, random_config, random_prompt
from jupyter_gemma.settings import Settings
from jupyter_gemma.types import ProgressCallback

#: Positions that a sequence has before its speed is taken.
CONTEXT = 64
#: Positions that the engine reads at once.
CHUNK: int = Settings.prefill_chunk.default_value

_TINY = replace(
    GEMMA4_12B,
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=128,
    layers=GEMMA4_12B.layers[:6],
    attention={
        "sliding": AttentionConfig(4, 2, 32, 1024, 1e4, 16),
        "full": AttentionConfig(4, 1, 64, None, 1e6, 8, value_from_key=True),
    },
    vision=VisionConfig(patch=48, positions=32, embed_dim=64),
    audio=AudioConfig(frame=640),
)


@dataclass(frozen=True)
class Options:
    """What is measured and how thoroughly.

    ``config``: of the model; ``whole``: of the model whose memory is taken. ``folder``: for their files.
    ``seconds``: that one comparison may take. ``buffer``: bytes read to find the memory's speed.
    """

    config: ModelConfig
    whole: ModelConfig
    folder: Path
    progress: ProgressCallback
    seconds: float = 20.0
    buffer: int = 5 << 28


def options(shape: str, folder: Path, progress: ProgressCallback, *, quick: bool = False, threads: int = 0) -> Options:
    """Measure ``shape`` (see :func:`~jupyter_gemma.model.random.random_config`); ``quick``: a tiny one, in no time.

    ``threads``: to compute with from now on; 0: as torch chooses.

    Raises:
        BadOption: there is no such shape.
    """
    if threads:
        torch.set_num_threads(threads)
    if quick:
        return Options(_TINY, _TINY, folder, progress, seconds=0.1, buffer=1 << 24)
    return Options(random_config(shape), GEMMA4_12B, folder, progress)


def packed_folder(config: ModelConfig, chosen: Options, table: WeightKind = "int8") -> Path:
    """A folder with the packed weights of :class:`RandomSource`, made if it is not there yet.

    ``table``: the kind of the embedding table; int8 is what 4-bit models are given when they are loaded.
    """
    source = RandomSource(config, table=table)
    folder = chosen.folder / source.digest()[:16]
    try:
        if PackedSource(folder / PACKED_NAME).digest() == source.digest():
            return folder
    except BadCheckpoint:
        pass
    write_packed(source, plan_kinds(source), folder / PACKED_NAME, torch.float32, chosen.progress)
    return folder


class Subject:
    """A model ready to run on the CPU with the fastest operations."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.config = loaded.config
        self.model = loaded.model
        self.model.use(choose_ops())

    @classmethod
    def open(cls, folder: Path) -> Subject:
        """Load a packed file."""
        return cls(load(folder, device="cpu"))

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that a step reads: all layers and the head, not what only media need."""
        parts = ("embed_tokens.", "layers.", "norm.")
        return sum(weight.nbytes for name, weight in self.model.named_parameters() if name.startswith(parts))

    def sequence(self, positions: int = CONTEXT, reserved: int = 0) -> SequenceCache:
        """A sequence with random keys and values, as if so many positions had been read."""
        cache = SequenceCache.for_model(self.config, dtype=self.model.cache_dtype)
        cache.reserve(max(reserved, positions))
        generator = torch.Generator().manual_seed(0)
        for index, layer in enumerate(cache.layers if positions else ()):
            shape = self.config.layer(index)
            # In pieces, as the engine reads: a sliding layer would keep all that comes at once.
            for piece in torch.split(torch.empty(positions), CHUNK):
                values = torch.randn(shape.kv_heads, len(piece), shape.head_dim, generator=generator)
                layer.append(values, values)
        cache.length = positions
        return cache

    @torch.inference_mode()
    def read(self, prompt: Prompt, cache: SequenceCache) -> Tensor:
        """Append a prompt; returns the logits [1, vocab] of its last position."""
        hidden = self.model(self.model.embed(prompt), [Span(len(prompt.ids), cache, prompt.blocks())])
        return self.model.logits(hidden[-1:])

    def prefill(self, count: int) -> Tensor:
        """Read ``count`` random tokens into a new sequence."""
        return self.read(Prompt(random_prompt(self.config, count)), self.sequence(0))

    @torch.inference_mode()
    def step(self, ids: Tensor, caches: Sequence[SequenceCache]) -> Tensor:
        """The next token of every sequence: ids int64 [sequences] -> the likeliest ids after them."""
        hidden = self.model(self.model.embed(Prompt(ids)), [Span(1, cache) for cache in caches])
        return self.model.logits(hidden).argmax(-1)

    def steps(self, rows: int, positions: int = CONTEXT) -> Steps:
        """``rows`` sequences of ``positions`` that grow together."""
        return Steps(self, random_prompt(self.config, rows), [self.sequence(positions) for _ in range(rows)])


@dataclass
class Steps:
    """Some sequences; calling it writes one more token to each."""

    subject: Subject
    ids: Tensor
    caches: Sequence[SequenceCache]

    def __call__(self) -> None:
        """One step."""
        self.ids = self.subject.step(self.ids, self.caches)
