"""``gemma.map`` with eight questions at a time beside one at a time: the whole way from a list of values and back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jupyter_gemma.bench.report import Report, rounded
from jupyter_gemma.bench.serve import SHORT, Talk, our_server
from jupyter_gemma.bench.subject import Options, packed_folder
from jupyter_gemma.notebook.api import Gemma

ROWS, ALONE, TOGETHER = 200, 40, 8
WRITTEN = 16  # tokens of each answer: a map asks for a word or a line


def map(chosen: Options) -> Report:  # noqa: A001 - benchmarks are called by their names
    """Rows a second of both, with random weights on our server; half of the single questions come after the others."""
    with TemporaryDirectory(prefix="jupyter-gemma-map-") as scratch:
        folder = packed_folder(chosen.config, chosen, table="int4")
        with our_server(folder, Path(scratch)) as client:
            talk = Talk(client, chosen.config, WRITTEN)
            talk.ask(talk.prompt(SHORT))  # the first answer of a process is slow
            gemma = Gemma(client)
            before = _seconds(gemma, [talk.prompt(SHORT) for _ in range(ALONE // 2)], 1)
            together = _seconds(gemma, [talk.prompt(SHORT) for _ in range(ROWS)], TOGETHER) / ROWS
            after = _seconds(gemma, [talk.prompt(SHORT) for _ in range(ALONE // 2)], 1)
    alone = (before + after) / ALONE
    found = {f"speedup_{TOGETHER}": alone / together, "rows_per_s": 1 / together, "rows_per_s_alone": 1 / alone}
    rows = [[name, f"{value:.3g}"] for name, value in found.items()]
    notes = [f"{ROWS} rows {TOGETHER} at a time, {ALONE} one at a time; {SHORT} tokens asked, {WRITTEN} answered"]
    figures = {f"map.{name}": rounded(value) for name, value in found.items()}
    return Report("map: one prompt over many values", ("", "figure"), rows, figures, notes)


def _seconds(gemma: Gemma, values: Sequence[str], concurrency: int) -> float:
    """How long a map takes; answers that were kept do not count.

    Raises:
        GemmaError: the first failure.
    """
    begin = time.perf_counter()
    mapped = gemma.map(
        values, "{}", concurrency=concurrency, show=False, temperature=0.0, max_tokens=WRITTEN, cache=False
    )
    taken = time.perf_counter() - begin
    for error in mapped.failures.values():
        raise error
    return taken
