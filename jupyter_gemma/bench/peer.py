"""llama.cpp in a process of its own: its threads wait in another way than ours, and what we ask of OpenMP slows it.

``python -m jupyter_gemma.bench.peer MODEL.gguf THREADS`` reads questions from stdin, one JSON list on a line: the
name of a method of :class:`Llama` and its arguments. It answers each with one line of JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jupyter_gemma.errors import GemmaError

#: Every so many-th logit is told.
STRIDE = 61
_ROOM = 512  # tokens of one prompt, or positions of all sequences by each
_ERROR = 4  # level of a message


class Peer:
    """The other process, as seen from ours; to be closed by ``with``."""

    def __init__(self, model: Path, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
        command = [sys.executable, "-m", "jupyter_gemma.bench.peer", str(model), str(threads)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def prefill(self, flash: bool, prompt: Sequence[int]) -> float:
        """Seconds until the likeliest token after a prompt in an empty sequence is known."""
        return float(self._ask("prefill", flash, prompt))

    def logits(self, flash: bool, prompt: Sequence[int]) -> list[float]:
        """Every :data:`STRIDE`-th logit after a prompt."""
        return list(self._ask("logits", flash, prompt))

    def begin(self, flash: bool, prompts: Sequence[Sequence[int]]) -> None:
        """Let sequences with these prompts grow together from now on."""
        self._ask("begin", flash, prompts)

    def step(self, flash: bool, count: int) -> float:
        """Seconds of the next token of all of the ``count`` sequences that were begun together."""
        return float(self._ask("step", flash, count))

    def _ask(self, *question: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise GemmaError("The process of llama.cpp has no pipes.")
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise GemmaError("The process of llama.cpp ended; what it said stands above.")
        return json.loads(answer)


class Llama:
    """One model in llama.cpp. ``flash``: whether its attention is fused."""

    def __init__(self, path: str, threads: int) -> None:
        self.api: Any = importlib.import_module("llama_cpp")
        # Bound to a name: the library keeps its address.
        self._log = self.api.llama_log_callback(_show_errors)
        self.api.llama_log_set(self._log, ctypes.c_void_p(0))
        self.api.llama_backend_init()
        options = self.api.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = self.api.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise GemmaError(f"llama.cpp refuses {path}.")
        self.vocab = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.threads = threads
        self._contexts: dict[tuple[bool, int], Context] = {}

    def prefill(self, flash: bool, prompt: list[int]) -> float:
        """See :class:`Peer`."""
        context = self._context(flash, 1)
        context.clear()
        start = time.perf_counter()
        context.read(0, prompt).argmax()
        return time.perf_counter() - start

    def logits(self, flash: bool, prompt: list[int]) -> list[float]:
        """See :class:`Peer`."""
        context = self._context(flash, 1)
        context.clear()
        return [float(value) for value in context.read(0, prompt)[0, ::STRIDE]]

    def begin(self, flash: bool, prompts: list[list[int]]) -> None:
        """See :class:`Peer`."""
        context = self._context(flash, len(prompts))
        context.clear()
        for sequence, prompt in enumerate(prompts):
            context.read(sequence, prompt)
        context.ids = [prompt[0] for prompt in prompts]

    def step(self, flash: bool, count: int) -> float:
        """See :class:`Peer`."""
        context = self._context(flash, count)
        start = time.perf_counter()
        context.step()
        return time.perf_counter() - start

    def _context(self, flash: bool, sequences: int) -> Context:
        key = flash, sequences
        if key not in self._contexts:
            self._contexts[key] = Context(self, flash, sequences)
        return self._contexts[key]


class Context:
    """Sequences that are computed together; ``ids``: their newest tokens, not yet read."""

    def __init__(self, llama: Llama, flash: bool, sequences: int) -> None:
        self._api, self._vocab = llama.api, llama.vocab
        options = llama.api.llama_context_default_params()
        options.n_ctx = _ROOM * sequences
        options.n_batch = options.n_ubatch = _ROOM
        options.n_seq_max = sequences
        options.n_threads = options.n_threads_batch = llama.threads
        kind = "ENABLED" if flash else "DISABLED"
        options.flash_attn_type = getattr(llama.api, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
        self._context = llama.api.llama_init_from_model(llama.model, options)
        if not self._context:
            raise GemmaError(f"llama.cpp makes no context for {sequences} sequences.")
        self._lengths = [0] * sequences
        self.ids: list[int] = []

    def clear(self) -> None:
        """Forget all tokens."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._lengths = [0] * len(self._lengths)

    def read(self, sequence: int, prompt: list[int]) -> NDArray[np.float32]:
        """Append a prompt to one sequence; the logits [1, vocab] after it."""
        return self._decode([(sequence, id_) for id_ in prompt], 1)

    def step(self) -> None:
        """Append the newest token of every sequence and find the likeliest next ones."""
        self.ids = self._decode(list(enumerate(self.ids)), len(self.ids)).argmax(-1).tolist()

    def _decode(self, rows: list[tuple[int, int]], wanted: int) -> NDArray[np.float32]:
        """Rows of (sequence, token); the logits [wanted, vocab] of the last ones, as a view."""
        batch = self._api.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for index, (sequence, id_) in enumerate(rows):
            batch.token[index], batch.pos[index] = id_, self._lengths[sequence]
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = index >= len(rows) - wanted
            self._lengths[sequence] += 1
        status = self._api.llama_decode(self._context, batch)
        self._api.llama_batch_free(batch)
        if status:
            raise GemmaError(f"llama_decode returned {status}.")
        return np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (wanted, self._vocab))


def _show_errors(level: int, text: bytes, data: object) -> None:
    if level == _ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def _serve(llama: Llama) -> None:
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        method: Callable[..., Any] = getattr(llama, name)
        sys.stdout.write(json.dumps(method(*arguments)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(Llama(sys.argv[1], int(sys.argv[2])))
