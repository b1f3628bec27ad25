"""How good a model is: questions with known answers, asked as any user asks them, and exact measures of the answers.

A suite is a JSONL file in the form of ``data``; the last turn of each line is the right answer. The built-in suites
(``suites/``) were made by ``examples/demo_model/`` from seeds, sentences, voices and styles that the demo model's
training leaves out. Their charts are judged by set phrases, so a model that words the same differently scores lower.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from jupyter_gemma.engine.engine import GemmaEngine
from jupyter_gemma.errors import BadOption, GemmaError
from jupyter_gemma.finetune.data import Lines
from jupyter_gemma.types import Chunk, Message, Progress, ProgressCallback, Request, Sampling

FOLDER = Path(__file__).parent / "suites"
OWN = "data"
MAX_TOKENS = 128
CHART_KINDS = (
    *("line chart", "area chart", "vertical bar chart", "horizontal bar chart", "stacked bar chart"),
    *("grouped bar chart", "scatter plot", "histogram", "pie chart", "violin plot", "box plot", "heat map"),
)
_EXTREME = re.compile(r"\b(tallest|longest|largest|highest|shortest)\b")

Pair = tuple[str, str]  # the answer that was given, and the right one


@dataclass(frozen=True)
class Subject:
    """A model to ask: ``ask`` streams its answer to a request; ``engine`` is None where it runs elsewhere."""

    name: str
    ask: Callable[[Request], Iterator[Chunk]]
    engine: GemmaEngine | None = None


def evaluate(
    subject: Subject, names: Sequence[str], own: Path | None, progress: ProgressCallback
) -> dict[str, float | str]:
    """Ask ``subject`` all questions of the suites ``names`` (none: all), or of the file ``own``.

    Returns:
        Shares of right answers (0 to 1), word error rates, and perplexities of the right answers where the model runs
        here, by name: "chart_type", "wer_known", "perplexity_charts". A suite that cannot be asked, as one with clips
        of a model that takes none, is told about under "SUITE.error".

    Raises:
        BadOption: there is no such suite. RequestError: ``own`` cannot be read.
    """
    figures: dict[str, float | str] = {}
    for name, path in _files(names, own).items():
        lines = Lines(path)
        try:
            figures.update(_evaluate(subject, name, lines, progress))
        except GemmaError as error:
            figures[f"{name}.error"] = str(error)
    return figures


def _files(names: Sequence[str], own: Path | None) -> dict[str, Path]:
    if own is not None:
        return {OWN: own}
    for name in names:
        if name not in MEASURES or name == OWN:
            raise BadOption(f"There is no suite {name!r}.", f"There are: {', '.join(sorted(set(MEASURES) - {OWN}))}.")
    return {name: FOLDER / f"{name}.jsonl" for name in MEASURES if name != OWN and (not names or name in names)}


def _evaluate(subject: Subject, name: str, lines: Lines, progress: ProgressCallback) -> dict[str, float]:
    measure, pairs = MEASURES[name], []
    for index in range(len(lines)):
        progress(Progress(f"{subject.name}: {name}", index, len(lines)))
        *asked, right = lines[index]
        said = _answer(subject, asked) if measure is not None else ""
        pairs.append((said, right.text))
    figures = measure(pairs) if measure is not None else {}
    if subject.engine is not None:
        figures[f"perplexity_{name.replace('-', '_')}"] = perplexity(subject.engine, lines)
    return figures


def _answer(subject: Subject, messages: Sequence[Message]) -> str:
    request = Request(tuple(messages), sampling=Sampling(temperature=0, max_tokens=MAX_TOKENS))
    return "".join(chunk.text for chunk in subject.ask(request)).strip()


# -- measures ----------------------------------------------------------------------------------------------------


def perplexity(engine: GemmaEngine, lines: Lines) -> float:
    """e to the mean loss of a token of the right answers, given all that stands before it."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for index in range(len(lines)):
            for example in lines.examples(index, engine.builder):
                scores = engine.model.logits_of(example.prompt)[example.start - 1 : -1]
                total += float(cross_entropy(scores, example.prompt.ids[example.start :], reduction="sum"))
                count += len(scores)
    return math.exp(total / count)


def charts(pairs: Sequence[Pair]) -> dict[str, float]:
    """Shares of right kinds, sentences on a trend or form, sentences on an extreme, and words of titles and labels."""
    captions = [pair for pair in pairs if _kind(pair[1])]
    sentences = [(said, part) for said, right in captions for part in _sentences(right)[1:]]
    words = [(said, word) for said, right in pairs if not _kind(right) for word in right.lower().split()]
    return {
        "chart_type": _share(_kind(said) == _kind(right) for said, right in captions),
        "trend": _share(part in _sentences(said) for said, part in sentences if not _EXTREME.search(part)),
        "extreme": _share(part in _sentences(said) for said, part in sentences if _EXTREME.search(part)),
        "words": _share(word in re.findall(r"\w+", said.lower()) for said, word in words),
    }


def _kind(caption: str) -> str:
    """The kind of chart that is named first."""
    named = [kind for kind in CHART_KINDS if kind in caption.lower()]
    return min(named, key=caption.lower().index, default="")


def _sentences(text: str) -> list[str]:
    return [sentence.strip().lower() for sentence in text.split(".") if sentence.strip()]


def _share(right: Iterable[bool]) -> float:
    found = list(right)
    return sum(found) / len(found) if found else math.nan


def word_error_rate(pairs: Sequence[Pair]) -> float:
    """Words to change, add or take away, as a share of the right words; case and punctuation do not count."""
    spoken = [tuple(re.findall(r"[\w']+", text.lower()) for text in pair) for pair in pairs]
    return sum(distance(*pair) for pair in spoken) / sum(len(right) for _, right in spoken)


def distance(said: Sequence[str], right: Sequence[str]) -> int:
    """Fewest changes of one word that make ``right`` of ``said`` (Levenshtein 1966)."""
    row = list(range(len(right) + 1))
    for place, word in enumerate(said, start=1):
        corner, row[0] = row[0], place
        for column, other in enumerate(right, start=1):
            corner, row[column] = row[column], min(corner + (word != other), row[column] + 1, row[column - 1] + 1)
    return row[-1]


def exact(pairs: Sequence[Pair]) -> float:
    """Share of answers that are the right one; case and a full stop at the end do not count."""
    return _share(said.strip().rstrip(".").lower() == right.strip().rstrip(".").lower() for said, right in pairs)


#: What is measured in each suite; None: its perplexity only.
MEASURES: Mapping[str, Callable[[Sequence[Pair]], dict[str, float]] | None] = {
    "charts": charts,
    "clips-known": lambda pairs: {"wer_known": word_error_rate(pairs)},
    "clips-unknown": lambda pairs: {"wer_unknown": word_error_rate(pairs)},
    "tables": lambda pairs: {"tables": exact(pairs)},
    "text": None,
    OWN: lambda pairs: {"exact": exact(pairs)},
}


# -- for people --------------------------------------------------------------------------------------------------


def table(results: Mapping[str, Mapping[str, float | str]]) -> list[str]:
    """Lines of text: a column for each model, then what could not be measured."""
    rows = list(dict.fromkeys(key for figures in results.values() for key in figures if not key.endswith(".error")))
    widths = [max(len(name), 9) for name in results]
    first = max(map(len, rows), default=0)
    lines = ["  ".join([" " * first, *(name.rjust(width) for name, width in zip(results, widths, strict=True))])]
    for key in rows:
        cells = (
            _cell(key, figures.get(key)).rjust(width) for figures, width in zip(results.values(), widths, strict=True)
        )
        lines.append("  ".join([key.ljust(first), *cells]))
    errors = [
        f"{name}, {key.removesuffix('.error')}: {text}"
        for name, figures in results.items()
        for key, text in figures.items()
        if key.endswith(".error")
    ]
    return lines + errors


def _cell(key: str, value: float | str | None) -> str:
    if not isinstance(value, float) or math.isnan(value):
        return "-"
    return f"{value:.2f}" if key.startswith("perplexity") else f"{100 * value:.1f} %"


def figures_json(results: Mapping[str, Mapping[str, float | str]]) -> dict[str, float | str | None]:
    """All figures by dotted name: "eval.KEY" of the first model, "eval.NAME.KEY" of the others."""
    found: dict[str, float | str | None] = {}
    for place, (name, figures) in enumerate(results.items()):
        for key, value in figures.items():
            missing = isinstance(value, float) and math.isnan(value)
            rounded = round(value, 4) if isinstance(value, float) and not missing else value
            found[f"eval.{name}.{key}" if place else f"eval.{key}"] = None if missing else rounded
    return found
