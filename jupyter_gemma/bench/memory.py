"""The most memory that the whole model takes: in a process of its own, reading a long prompt with media."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from jupyter_gemma.bench.report import Report, rounded
from jupyter_gemma.bench.subject import CHUNK, Options, Subject, packed_folder
from jupyter_gemma.errors import GemmaError
from jupyter_gemma.model.decoder import Prompt, SoftTokens
from jupyter_gemma.model.placement import release_freed_memory
from jupyter_gemma.model.random import random_prompt

_CONTEXT, _PROMPT = 8192, 2000
_TEXT, _SIDE, _FRAMES = 8, 16, 50  # some text, a picture of 16 x 16 patches, two seconds of sound


def memory(chosen: Options) -> Report:
    """Peak resident memory of the whole shape; mapped pages of the weight file count."""
    folder = packed_folder(chosen.whole, chosen)
    command = [sys.executable, "-m", "jupyter_gemma.bench.memory", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GemmaError(f"The process whose memory is measured failed: {done.stderr[-1000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Report(
        f"memory: {len(chosen.whole.layers)} layers, {_PROMPT} tokens with picture and clip, up to position {_CONTEXT}",
        ("", "GB"),
        [(name, f"{found[name] / 1e9:.2f}") for name in ("peak", "weights", "keys and values")],
        {
            "memory.peak_rss_gb": rounded(found["peak"] / 1e9),
            "memory.weights_gb": rounded(found["weights"] / 1e9),
            "memory.cache_gb": rounded(found["keys and values"] / 1e9),
            "memory.prefill_seconds": rounded(found["seconds"]),
        },
        [f"the prompt took {found['seconds']:.1f} s"],
    )


def _measure(folder: Path) -> dict[str, float]:
    """What the measured process does, and what it took: bytes and seconds."""
    subject = Subject.open(folder)
    cache = subject.sequence(_CONTEXT - _PROMPT, reserved=_CONTEXT)
    start = time.perf_counter()
    for prompt in _chunks(subject):
        subject.read(prompt, cache)
        release_freed_memory()
    return {
        "seconds": time.perf_counter() - start,
        "peak": _peak(),
        "weights": subject.loaded.resident_bytes,
        "keys and values": cache.nbytes,
    }


def _chunks(subject: Subject) -> list[Prompt]:
    """A prompt in the pieces in which the engine reads it; the first holds a clip, and a picture, which is not cut."""
    first = _TEXT + _SIDE * _SIDE + _FRAMES
    ids = random_prompt(subject.config, _PROMPT)
    pieces = [ids[:first], *torch.split(ids[first:], CHUNK)]
    config, soft = subject.config, []
    if config.vision is not None:
        patches = torch.rand(_SIDE * _SIDE, config.vision.patch_values)
        positions = torch.cartesian_prod(torch.arange(_SIDE), torch.arange(_SIDE))
        soft.append(SoftTokens(_TEXT, patches=patches, positions=positions))
    if config.audio is not None:
        soft.append(SoftTokens(first - _FRAMES, frames=torch.rand(_FRAMES, config.audio.frame)))
    return [Prompt(pieces[0], tuple(soft)), *(Prompt(piece) for piece in pieces[1:])]


def _peak() -> int:
    """Bytes. Linux tells the peak of this program; elsewhere it is that of all that the process ever ran."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(Path(sys.argv[1]))) + "\n")
