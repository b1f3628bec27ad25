"""From disk: how long loading takes, and what it costs when only a part of the weights fits into memory."""

from __future__ import annotations

from pathlib import Path

from jupyter_gemma.bench.report import Report, milliseconds, rounded
from jupyter_gemma.bench.subject import Options, Subject, packed_folder
from jupyter_gemma.bench.timing import alternate, timed
from jupyter_gemma.model.checkpoint import load as load_model
from jupyter_gemma.model.packed import PACKED_NAME

_PIECE = 1 << 20


def load(chosen: Options) -> Report:
    """Loading a packed file that was read before, against reading it once."""
    folder = packed_folder(chosen.config, chosen)
    file = folder / PACKED_NAME
    sides = {
        "read the file": timed(lambda: _read(file)),
        "load": timed(lambda: Subject.open(folder)),
        "load and write one token": timed(lambda: Subject.open(folder).steps(1)()),
    }
    times = alternate(sides, chosen.seconds, most=10)
    once = times["read the file"].median
    return Report(
        f"load: a packed file of {file.stat().st_size / 1e9:.3f} GB in warm page cache",
        ("", "ms", "min", "of reading"),
        [
            (name, milliseconds(found.median), milliseconds(found.best), f"{found.median / once:.3f}")
            for name, found in times.items()
        ],
        {
            "load.seconds": rounded(times["load"].median),
            "load.seconds_over_read": rounded(times["load"].median / once),
            "load.first_token_over_read": rounded(times["load and write one token"].median / once),
        },
    )


def _read(file: Path) -> None:
    buffer = bytearray(_PIECE)
    with file.open("rb", buffering=0) as stream:
        while stream.readinto(buffer):
            pass


def offload(chosen: Options) -> Report:
    """One token at a time with half of the weights read from disk for each, against all in memory."""
    folder = packed_folder(chosen.config, chosen)
    whole = Subject.open(folder)
    limit = whole.loaded.resident_bytes // 2
    part = Subject(load_model(folder, device="cpu", max_memory={"cpu": limit}))
    sides = {"all in memory": timed(whole.steps(1)), "half on disk": timed(part.steps(1))}
    times = alternate(sides, chosen.seconds)
    slowdown = times["half on disk"].median / times["all in memory"].median
    return Report(
        f"offload: {part.loaded.resident_bytes / 1e9:.3f} of {whole.loaded.resident_bytes / 1e9:.3f} GB in memory",
        ("", "ms", "min"),
        [(name, milliseconds(found.median), milliseconds(found.best)) for name, found in times.items()],
        {
            "offload.slowdown_disk": rounded(slowdown),
            "offload.tokens_per_s": rounded(1 / times["half on disk"].median),
        },
        [f"{slowdown:.1f} times slower; the file is in the page cache as far as free memory allows"],
    )
