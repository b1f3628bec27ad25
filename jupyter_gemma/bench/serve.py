"""The model server under load: what a follow-up costs, how Stop and short questions fare, how four clients share.

A real server process with random weights answers our own client; llama-cpp-python's server answers the same client with
the same weights, from the same file format with the same tokens.
"""

from __future__ import annotations

import importlib.util
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import AddedToken, Tokenizer, models

from jupyter_gemma.bench.gguf_file import write_gguf
from jupyter_gemma.bench.report import Report, rounded
from jupyter_gemma.bench.subject import Options, packed_folder
from jupyter_gemma.client import Client, Hangup
from jupyter_gemma.errors import GemmaError, ServerLost
from jupyter_gemma.model.config import ModelConfig
from jupyter_gemma.model.packed import PACKED_NAME, PackedSource
from jupyter_gemma.settings import Settings, load_settings
from jupyter_gemma.types import Message, Progress, Request, Sampling, TextPart, Usage

LONG, SHORT, NEW = 2000, 16, 20  # tokens of prompts, and of what a follow-up adds
CLIENTS, STOPS = 4, 5
#: Tokens 600 and up stand for one character each; what stands below has a meaning of its own.
FIRST_CHARACTER, FIRST_BYTE, FIRST_PLAIN = 0x10000, 300, 600
MODEL = "bench"
NAMES = ("followup_share", "cancel_steps", "speedup_4", "ttft_chunks", "overhead_ms_per_token", "ratio_llamacpp_4")


@dataclass(frozen=True)
class Answered:
    """One answer as its client saw it: seconds to the first piece and to the end, pieces, and what the server said."""

    first: float
    total: float
    pieces: int
    usage: Usage
    text: str


def serve(chosen: Options) -> Report:
    """All figures of the server; the last one is left out where llama-cpp-python's server is not installed."""
    written = 8 if chosen.config.hidden_size < 256 else 64
    with TemporaryDirectory(prefix="jupyter-gemma-serve-") as scratch:
        folder = packed_folder(chosen.config, chosen, table="int4")
        with our_server(folder, Path(scratch)) as client:
            talk = Talk(client, chosen.config, written)
            figures = measure(talk, client.settings.prefill_chunk)
            ours = talk.rate(CLIENTS)
        llama = _llama_rate(folder, chosen, written)
    if llama:
        figures["ratio_llamacpp_4"] = ours / llama
    rows = [[name, f"{value:.3g}"] for name, value in figures.items()]
    notes = [f"{ours:.3g} tokens/s of four clients; llama.cpp {f'{llama:.3g}' if llama else 'is not installed'}"]
    found = {f"serve.{name}": rounded(value) for name, value in figures.items()}
    return Report("serve: the model server", ("", "figure"), rows, found, notes)


def measure(talk: Talk, chunk: int) -> dict[str, float]:
    """The figures that need our server alone; ``chunk``: tokens of a prompt that it reads at once."""
    talk.ask(talk.prompt(SHORT))  # the first answer of a process is slow
    cold, share = followup(talk)
    return {
        "followup_share": share,
        "cancel_steps": cancel_steps(talk),
        "speedup_4": talk.rate(CLIENTS) / talk.rate(1),
        "ttft_chunks": first_token_beside(talk) / (cold / math.ceil(LONG / chunk)),
        "overhead_ms_per_token": overhead(talk),
    }


def followup(talk: Talk) -> tuple[float, float]:
    """Seconds to the first token of a long prompt, and the share of it that the next turn takes."""
    prompt = talk.prompt(LONG)
    cold = talk.ask(prompt, tokens=2)
    warm = talk.ask(prompt, cold.text, talk.prompt(NEW), tokens=2)
    return cold.first, warm.first / cold.first


def cancel_steps(talk: Talk) -> float:
    """The most steps that were still made after a client had hung up, of a few times."""
    return max(_steps_after_stop(talk) for _ in range(STOPS))


def _steps_after_stop(talk: Talk) -> int:
    hangup = Hangup()
    seen = 0
    before = 0
    try:
        for chunk in talk.client.stream(talk.request([talk.prompt(SHORT)], 4000), hangup):
            seen += bool(chunk.text)
            if seen == 4 and not hangup.called:
                before = talk.steps()
                hangup()
    except ServerLost:
        pass
    while talk.client.status()["running"]:
        time.sleep(0.001)
    return talk.steps() - before


def first_token_beside(talk: Talk) -> float:
    """Seconds to the first token of a short prompt while another client's long one is being read."""
    other = talk.client.stream(talk.request([talk.prompt(LONG)], 2))
    next(chunk for chunk in other if chunk.progress)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, other)
        first = talk.ask(talk.prompt(SHORT), tokens=2).first
        rest.result()
    return first


def overhead(talk: Talk) -> float:
    """Milliseconds a token that pass between the client and the engine, over the engine's own time."""
    found = [talk.ask(talk.prompt(SHORT)) for _ in range(3)]
    costs = [(each.total - each.usage.prefill_seconds - each.usage.decode_seconds) / each.pieces for each in found]
    return 1000 * max(0.0, statistics.median(costs))


class Talk:
    """Asks a server questions of random characters, each of them a token and none asked before."""

    def __init__(self, client: Client, config: ModelConfig, written: int) -> None:
        self.client = client
        special = (config.ids.image_begin, config.ids.image, config.ids.audio_begin, config.ids.audio)
        self._size = min([config.vocab_size, *(number for number in special if number and number > FIRST_PLAIN)])
        self._written = written
        self._random = random.Random(0)  # noqa: S311 - no secret

    def prompt(self, tokens: int) -> str:
        """So many random characters."""
        numbers = (self._random.randrange(FIRST_PLAIN, self._size) for _ in range(tokens))
        return "".join(chr(FIRST_CHARACTER + number) for number in numbers)

    def request(self, turns: Sequence[str], tokens: int) -> Request:
        """A request with these turns, user first."""
        roles = ("user", "assistant")
        messages = tuple(Message(roles[n % 2], (TextPart(text),)) for n, text in enumerate(turns))  # type: ignore[arg-type]
        return Request(messages, sampling=Sampling(temperature=0.0, max_tokens=tokens))

    def ask(self, *turns: str, tokens: int = 0) -> Answered:
        """Ask and take the time."""
        begin = time.perf_counter()
        first, pieces, text, usage = 0.0, 0, "", Usage()
        for chunk in self.client.stream(self.request(turns, tokens or self._written)):
            if chunk.text:
                first = first or time.perf_counter() - begin
                pieces += 1
                text += chunk.text
            usage = chunk.usage or usage
        total = time.perf_counter() - begin
        return Answered(first or total, total, max(1, pieces), usage, text)

    def rate(self, clients: int) -> float:
        """Tokens a second of so many clients together."""
        prompts = [self.prompt(SHORT) for _ in range(clients)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            pieces = sum(answered.pieces for answered in pool.map(self.ask, prompts))
        return pieces / (time.perf_counter() - begin)

    def steps(self) -> int:
        """Passes over the weights so far."""
        return int((self.client.status()["engine"] or {})["steps"])


# -- servers -----------------------------------------------------------------------------------------------------


@contextmanager
def our_server(folder: Path, scratch: Path) -> Iterator[Client]:
    """Our server with the weights of a packed folder, which is given a vocabulary and a card."""
    size = PackedSource(folder / PACKED_NAME).config.vocab_size
    write_tokenizer(size, PackedSource(folder / PACKED_NAME).config.ids.bos, folder / "tokenizer.json")
    (folder / "card.json").write_text(json.dumps({"name": MODEL, "instruct": False}), encoding="utf-8")
    (scratch / "models").mkdir()
    (scratch / "models" / MODEL).symlink_to(folder.absolute(), target_is_directory=True)
    client = Client(_settings(scratch))
    try:
        client.load(MODEL)
        yield client
    finally:
        client.stop_server()


def _settings(scratch: Path, **more: str) -> Settings:
    given = {"models_dir": str(scratch / "models"), "runtime_dir": str(scratch), "model": MODEL, "speculation": "off"}
    return load_settings({**given, "threads": torch.get_num_threads(), **more}, environ={})


def _llama_rate(folder: Path, chosen: Options, written: int) -> float:
    """Tokens a second of four clients of llama-cpp-python's server; 0 where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("sse_starlette") is None:
        return 0.0
    path = folder / "served.gguf"
    if not path.exists():
        chosen.progress(Progress("writing the same weights as GGUF, with a vocabulary"))
        source = PackedSource(folder / PACKED_NAME)
        write_gguf(source, path, tokens_of(source.config.vocab_size, source.config.ids.bos))
    options = ["--host", "127.0.0.1", "--port", "0", "--n_ctx", "1024", "--interrupt_requests", "false"]
    options += ["--n_threads", str(torch.get_num_threads())]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            base_url = _address(process) + "/v1"
            client = Client(load_settings({"base_url": base_url, "model": MODEL}, environ={}))
            return _drained(process, lambda: _warm_rate(Talk(client, chosen.config, written)))
        finally:
            process.kill()


def _warm_rate(talk: Talk) -> float:
    talk.ask(talk.prompt(SHORT))
    return talk.rate(CLIENTS)


def _address(process: subprocess.Popen[str]) -> str:
    said = []
    for line in process.stderr or ():
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise GemmaError(f"llama-cpp-python's server did not start: {''.join(said[-5:])}")


def _drained(process: subprocess.Popen[str], action: Callable[[], float]) -> float:
    """Do something while what the process says is read, so that it never waits for room to say more."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: [None for _ in process.stderr or ()])
        try:
            return action()
        finally:
            process.kill()


# -- a vocabulary ------------------------------------------------------------------------------------------------


def tokens_of(size: int, bos: int) -> list[str]:
    """A vocabulary in which each token is one character; some stand for bytes, as SentencePiece's do."""
    tokens = [chr(FIRST_CHARACTER + number) for number in range(size)]
    tokens[FIRST_BYTE : FIRST_BYTE + 256] = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens[bos] = "<bos>"
    return tokens


def write_tokenizer(size: int, bos: int, path: Path) -> None:
    """Write :func:`tokens_of` as ``tokenizer.json``."""
    vocabulary = {token: number for number, token in enumerate(tokens_of(size, bos))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.add_special_tokens([AddedToken("<bos>", normalized=False, special=True)])
    core.save(str(path))
