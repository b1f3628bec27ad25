"""Write the demo model's training data, or the suites of ``jupyter gemma eval``, as JSONL conversations with media.

    python -m examples.demo_model.make OUT                  # training data: train.jsonl, valid.jsonl
    python -m examples.demo_model.make --held-out OUT       # charts.jsonl, clips-known.jsonl, ...

What is made depends on the seed and the place in the file only, so the same command writes the same files.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import kaleido
import numpy as np
import soundfile
from numpy.random import Generator

from examples.demo_model.figures import Drawn, draw_figure, draw_plotly_figure
from examples.demo_model.sentences import sentence
from examples.demo_model.speech import RATE, Speaker, known_voice, new_voice, recorded
from examples.demo_model.tables import draw_table

HELD_OUT_SEED = 10**6  # seeds of training data are smaller
EXPLAIN = ("Explain this plot.", "Explain this plot.", "Describe this chart.", "What does this plot show?")
LABELS = ("What does the title say?", "What does the x axis say?", "What does the y axis say?")
HARD = ("Which column has", "What is the")  # of a table: numbers to be found and compared
TRANSCRIBE = "Transcribe the audio."
CHARTS, PLOTLY_CHARTS, CLIPS, TABLES = 120, 24, 40, 30  # of the suites

Line = dict[str, Any]


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="Folder to write into.")
    parser.add_argument("--held-out", action="store_true", help="The suites of jupyter gemma eval.")
    parser.add_argument("--figures", type=int, default=24_000)
    parser.add_argument("--plotly-figures", type=int, default=2_500)
    parser.add_argument("--clips", type=int, default=36_000)
    parser.add_argument("--tables", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=0, help="Below 1,000,000.")
    given = parser.parse_args()
    if not 0 <= given.seed < HELD_OUT_SEED:
        parser.error(f"--seed must be from 0 to {HELD_OUT_SEED - 1}: what lies above is held out")
    given.out.mkdir(parents=True, exist_ok=True)
    with _browser() if given.held_out or given.plotly_figures else nullcontext():
        if given.held_out:
            write_suites(given.out)
        else:
            counts = (given.figures, given.plotly_figures, given.clips, given.tables)
            write_training(given.out, "train", counts, given.seed)
            write_training(given.out, "valid", tuple(math.ceil(count / 200) for count in counts), HELD_OUT_SEED - 1)


@contextmanager
def _browser() -> Iterator[None]:
    """One browser for all figures of plotly: to start one for each takes longer than drawing."""
    kaleido.start_sync_server(page_generator=kaleido.PageGenerator(mathjax=False))  # MathJax would be fetched
    try:
        yield
    finally:
        kaleido.stop_sync_server()


def write_training(out: Path, name: str, counts: tuple[int, ...], seed: int) -> None:
    """``NAME.jsonl`` with so many figures of matplotlib and of plotly, clips and tables, and their media beside it."""
    figures, plotly_figures, clips, tables = counts
    speaker = Speaker()
    with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
        for index in range(figures):
            rng = chance(seed, 0, index)
            _write(file, figure_lines(out, f"{name}-figures/{index:06}.png", draw_figure(rng), rng))
        for index in range(plotly_figures):
            rng = chance(seed, 8, index)
            _write(file, figure_lines(out, f"{name}-plotly/{index:06}.png", draw_plotly_figure(rng), rng))
        for index in range(clips):
            path = f"{name}-clips/{index:06}.flac"
            _write(file, [clip_line(out, path, chance(seed, 1, index), speaker, known=True, held_out=False)])
        for index in range(tables):
            _write(file, table_lines(chance(seed, 2, index), easy=0.1))


def write_suites(out: Path) -> None:
    """The suites with charts, clips and tables, see ``jupyter_gemma/finetune/evaluate.py``."""
    speaker = Speaker()
    suites = {
        "charts": (line for name, drawn in held_out_charts() for line in chart_questions(out, name, drawn)),
        "clips-known": (held_out_clip(out, index, speaker, known=True) for index in range(CLIPS)),
        "clips-unknown": (held_out_clip(out, index, speaker, known=False) for index in range(CLIPS)),
        "tables": (line for index in range(TABLES) for line in table_lines(chance(HELD_OUT_SEED, 2, index))),
    }
    for name, lines in suites.items():
        with (out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            _write(file, lines)


def chance(*place: int) -> Generator:
    """Random numbers of one item, the same whatever was made before it."""
    return np.random.default_rng(place)


def _write(file: Any, lines: Iterator[Line] | list[Line]) -> None:
    file.writelines(json.dumps(line) + "\n" for line in lines)


# -- lines -------------------------------------------------------------------------------------------------------


def figure_lines(out: Path, path: str, drawn: Drawn, rng: Generator) -> Iterator[Line]:
    """A figure asked what it shows, asked its labels (or that it has none), and asked all in any order.

    Each alone as well as all: an answer must not need another before it.
    """
    _save(out / path, drawn.png)
    caption = (str(rng.choice(EXPLAIN)), drawn.caption)
    labels = [
        (question, text or f"no {'title' if 'title' in question else 'label'}")
        for question, text in zip(LABELS, _labels(drawn), strict=True)
    ]
    for asked in ([caption], labels, [caption, *labels]):
        yield conversation({"type": "image", "image": path}, *(asked[place] for place in rng.permutation(len(asked))))


def held_out_charts() -> Iterator[tuple[str, Drawn]]:
    """The figures of the suite of charts by name; every second in a new style."""
    for index in range(CHARTS):
        yield f"{index:03}", draw_figure(chance(HELD_OUT_SEED, 0, index), new_style=index % 2 == 1)
    for index in range(PLOTLY_CHARTS):
        yield f"plotly-{index:03}", draw_plotly_figure(chance(HELD_OUT_SEED, 8, index), new_style=index % 2 == 1)


def chart_questions(out: Path, name: str, drawn: Drawn) -> Iterator[Line]:
    """One line for the caption of a figure and one for each label that it has."""
    path = f"charts/{name}.png"
    _save(out / path, drawn.png)
    asked = zip((EXPLAIN[0], *LABELS), (drawn.caption, *_labels(drawn)), strict=True)
    yield from (conversation({"type": "image", "image": path}, pair) for pair in asked if pair[1])


def _labels(drawn: Drawn) -> tuple[str, str, str]:
    return drawn.title, drawn.x_label, drawn.y_label


def clip_line(out: Path, path: str, rng: Generator, speaker: Speaker, *, known: bool, held_out: bool) -> Line:
    """Something said by a voice of the training set (``known``), or by another."""
    said, voice = sentence(rng, held_out=held_out), known_voice(rng) if known else new_voice(rng)
    clip = recorded(speaker.say(said, voice), rng)
    (out / path).parent.mkdir(exist_ok=True)
    soundfile.write(out / path, clip, RATE, subtype="PCM_16")
    return conversation({"type": "audio", "audio": path}, (TRANSCRIBE, said))


def held_out_clip(out: Path, index: int, speaker: Speaker, *, known: bool) -> Line:
    """A sentence that training never hears."""
    path = f"clips/{'known' if known else 'unknown'}-{index:03}.flac"
    return clip_line(out, path, chance(HELD_OUT_SEED, 3 if known else 4, index), speaker, known=known, held_out=True)


def table_lines(rng: Generator, easy: float = 1.0) -> Iterator[Line]:
    """A table with a line for each question; ``easy``: the share of those that are soon learnt."""
    table = draw_table(rng)
    for question, answer in table.questions(rng):
        if question.startswith(HARD) or rng.random() < easy:
            yield conversation(None, (f"{table}\n{question}", answer))


def conversation(media: Line | None, *asked: tuple[str, str]) -> Line:
    """Questions and answers in turn; ``media`` stands before the first."""
    messages: list[Line] = []
    for question, answer in asked:
        text = {"type": "text", "text": question}
        content = [media, text] if media and not messages else question
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _save(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
