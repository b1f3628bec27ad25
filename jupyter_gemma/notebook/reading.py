"""Reading answers: code blocks, JSON, tables. Pure text in, values out; pandas only where a frame is asked for."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from jupyter_gemma.errors import BadAnswer

_BLOCK = re.compile(r"^(?P<mark>`{3,}|~{3,})(?P<language>[^\n`]*)\n(?P<code>.*?)^(?P=mark)[`~]*[ \t]*$", re.M | re.S)
_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")


def code_of(text: str, only_code: bool = False) -> str:
    """The fenced blocks of ``text``, joined; without any the whole text, if it is ``only_code``, else ""."""
    blocks = [match["code"].strip("\n") for match in _BLOCK.finditer(f"{text}\n")]
    if blocks:
        return "\n\n".join(blocks)
    return text.strip() if only_code else ""


def json_of(text: str) -> Any:
    """The JSON that ``text`` is, or holds in a fenced block.

    Raises:
        BadAnswer: it holds none.
    """
    for source in (text, code_of(text)):
        try:
            return json.loads(source)
        except ValueError:
            continue
    raise BadAnswer(f"The answer holds no JSON: {text[:80]!r}.", "Ask with --format json, or a --schema.")


def frame_of(text: str) -> Any:
    """The rows in ``text`` as a pandas data frame: JSON, a Markdown table, or a block of CSV.

    Raises:
        BadAnswer: it holds no rows.
    """
    import pandas

    if (rows := markdown_rows(text)) is not None:
        return pandas.DataFrame(rows[1:], columns=rows[0]).apply(_numbers)
    try:
        return pandas.DataFrame(_records(json_of(text)))
    except (BadAnswer, ValueError, TypeError) as error:
        if "," in code_of(text).partition("\n")[0]:
            return pandas.read_csv(io.StringIO(code_of(text)))
        raise BadAnswer(f"The answer holds no table: {text[:80]!r}.", "Ask with --format table.") from error


def markdown_rows(text: str) -> list[list[str]] | None:
    """The cells of the first Markdown table in ``text``, its head first; None if there is none."""
    lines = text.splitlines()
    for at in range(1, len(lines)):
        if "|" in lines[at - 1] and "-" in lines[at] and _RULE.fullmatch(lines[at]):
            body = _until_no_bar(lines[at + 1 :])
            head = _cells(lines[at - 1])
            return [head, *((_cells(line) + [""] * len(head))[: len(head)] for line in body)]
    return None


def _until_no_bar(lines: list[str]) -> list[str]:
    end = next((at for at, line in enumerate(lines) if "|" not in line), len(lines))
    return lines[:end]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def _records(value: Any) -> Any:
    """Rows, or a dict of one list of rows, or a dict of columns, as a data frame takes them."""
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), list):
        inner = next(iter(value.values()))
        return inner if inner and isinstance(inner[0], dict) else value
    return value if isinstance(value, list) else [value] if _is_flat(value) else value


def _is_flat(value: Any) -> bool:
    return isinstance(value, dict) and not any(isinstance(item, list | dict) for item in value.values())


def _numbers(column: Any) -> Any:
    import pandas

    try:
        return pandas.to_numeric(column)
    except (ValueError, TypeError):
        return column
