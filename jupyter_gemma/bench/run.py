"""All benchmarks by name, and running them: tables for people, then one JSON object."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from jupyter_gemma.bench.compare import compare
from jupyter_gemma.bench.kernels import kernels
from jupyter_gemma.bench.lookup import lookup
from jupyter_gemma.bench.map import map  # noqa: A004 - see there
from jupyter_gemma.bench.memory import memory
from jupyter_gemma.bench.report import Report
from jupyter_gemma.bench.serve import serve
from jupyter_gemma.bench.speed import batch, decode, prefill
from jupyter_gemma.bench.storage import load, offload
from jupyter_gemma.bench.subject import Options
from jupyter_gemma.errors import BadOption, GemmaError

BENCHMARKS: Mapping[str, Callable[[Options], Report]] = {
    function.__name__: function
    for function in (decode, batch, prefill, lookup, kernels, load, offload, memory, compare, serve, map)
}
ALL = "all"


def run(names: Sequence[str], chosen: Options) -> Iterator[str]:
    """Run benchmarks; yields lines of text, the last one a JSON object of all figures by dotted name.

    One that cannot be run is told about under ``NAME.error``, and the others go on.

    Raises:
        BadOption: there is no such benchmark.
    """
    wanted = list(BENCHMARKS) if not names or ALL in names else names
    for name in wanted:
        if name not in BENCHMARKS:
            raise BadOption(f"There is no benchmark {name!r}.", f"There are: {', '.join((*BENCHMARKS, ALL))}.")
    figures: dict[str, Any] = {"machine": machine()}
    yield ", ".join(f"{key} {value}" for key, value in figures["machine"].items())
    for name in wanted:
        report = _run(name, chosen)
        figures.update(report.figures)
        yield from report.lines()
    yield ""
    yield json.dumps(figures)


def _run(name: str, chosen: Options) -> Report:
    try:
        return BENCHMARKS[name](chosen)
    except (GemmaError, OSError) as error:
        text = f"{error.message} {error.fix}".rstrip() if isinstance(error, GemmaError) else str(error)
        return Report(f"{name}: {text}", figures={f"{name}.error": text})


def machine() -> dict[str, Any]:
    """What figures depend on: processor, threads, system, versions, day."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
