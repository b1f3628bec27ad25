"""An answer as MIME types: its text in the form asked for, and small lines on how it came about."""

from __future__ import annotations

import base64
import html
import json
import re
from typing import Any

from jupyter_gemma.errors import BadAnswer
from jupyter_gemma.notebook.exchange import Exchange, ToolRun
from jupyter_gemma.notebook.harmless import harmless
from jupyter_gemma.notebook.reading import code_of, json_of
from jupyter_gemma.types import Progress, Usage

METADATA_KEY = "jupyter_gemma"
TABLE_ROWS = 200
# The page in the frame may style itself and show what it brings along; it cannot load, run or submit anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_ENDINGS = {"cancelled": "stopped", "length": "cut: --max-tokens allows more"}


def bundle(answer: Exchange, status: str = "") -> dict[str, str]:
    """MIME type -> text. ``status`` stands in for an answer that is still to come."""
    facts = fact_lines(answer) if answer.finish else []
    plain = {"text/plain": "\n\n".join([answer.text or status, *(f"[{line}]" for line in facts)])}
    small = [f"<sub>{line}</sub>" for line in facts]
    if answer.finish and answer.format == "html":
        below = "".join(f"<div><small>{html.escape(line)}</small></div>" for line in facts)
        return {"text/html": f"{_framed(answer.text)}{below}", **plain}
    pictures = "".join(f"![sent]({_data_uri(data)}) " for data in answer.thumbnails) if answer.finish else ""
    waiting = f"*{status}*" if status else ""
    markdown = [*_thoughts(answer), _body(answer) or waiting, *([f"{pictures}{small[0]}", *small[1:]] if small else [])]
    return {"text/markdown": "\n\n".join(markdown), **plain}


def metadata(answer: Exchange) -> dict[str, Any]:
    """What goes along with the output in the notebook file: how the answer was made, and how long it is.

    The text/plain of :func:`bundle` begins with the answer, so its ``characters`` tell where it ends.
    """
    if not answer.record or not answer.finish:
        return {}
    called = {"called": [run.name for run in answer.trace]} if answer.trace else {}
    return {METADATA_KEY: {**answer.record, "finish": answer.finish, "characters": len(answer.text), **called}}


def _thoughts(answer: Exchange) -> list[str]:
    """What the model thought, folded."""
    if not answer.thinking or not answer.text:
        return []
    return [f"<details><summary>thinking</summary>\n\n{harmless(answer.thinking)}\n\n</details>"]


def _body(answer: Exchange) -> str:
    """The text as Markdown that loads nothing."""
    if not answer.text or answer.format == "markdown":
        return harmless(answer.text)
    if answer.format == "code":
        return fenced(code_of(answer.text) or answer.text, "python")
    if answer.format in ("json", "table") and answer.finish:
        return _data(answer)
    return fenced(answer.text, "json" if answer.format in ("json", "table") else answer.format)


def _data(answer: Exchange) -> str:
    try:
        value = json_of(answer.text)
    except BadAnswer:
        return harmless(answer.text)
    if answer.format == "table" and isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return table(value)
    return fenced(json.dumps(value, indent=2, ensure_ascii=False), "json")


def fenced(text: str, language: str) -> str:
    """``text`` as a code block that it cannot end itself."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table, cut after :data:`TABLE_ROWS`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([row.get(name, "") for name in names] for row in rows[:TABLE_ROWS])]
    more = [f"… {len(rows) - TABLE_ROWS} more rows"] if len(rows) > TABLE_ROWS else []
    return "\n".join([*("| " + " | ".join(map(_cell, line)) + " |" for line in lines), *(["", *more] if more else [])])


def _cell(value: object) -> str:
    return harmless(" ".join(str(value).split())).replace("|", "\\|")


def _framed(page: str) -> str:
    source = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">{page}'
    return f'<iframe sandbox srcdoc="{html.escape(source)}" style="width:100%;height:24em;border:0"></iframe>'


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def fact_lines(answer: Exchange) -> list[str]:
    """The lines under an answer: how it ended, what was sent, tools, tokens and speed, the model's notice."""
    facts = [words] if (words := _ending(answer)) else []
    facts += [f"cached on {answer.cached}, --no-cache asks anew"] if answer.cached else []
    facts += [f"sent {', '.join(harmless(words) for words in answer.sent)}"] if answer.sent else []
    facts += [f"called {', '.join(map(_call, answer.trace))}"] if answer.trace else []
    facts += [words for words in (token_words(answer.usage), speed_words(answer.usage), answer.model) if words]
    return [" · ".join(facts), *([answer.notice] if answer.notice else [])]


def _ending(answer: Exchange) -> str:
    """Why an answer came to no end of its own; "" if it did."""
    room, used = answer.record.get("context_length", 0), answer.usage.prompt_tokens + answer.usage.completion_tokens
    if answer.finish == "length" and 0 < room <= used:
        return f"cut: the model's context of {room} tokens is full, send less or begin again with --new"
    return _ENDINGS.get(answer.finish or "", "")


def _call(run: ToolRun) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in run.arguments.items())
    return harmless(f"{run.name}({arguments[:80]})")


def token_words(usage: Usage) -> str:
    """Tokens by modality: "12 text + 48 image tokens, 30 answered"."""
    counts = {"text": usage.text_tokens, "image": usage.image_tokens, "audio": usage.audio_tokens}
    words = " + ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    answered = f", {usage.completion_tokens} answered" if usage.completion_tokens else ""
    return f"{words} tokens{answered}" if words else ""


def speed_words(usage: Usage) -> str:
    """Tokens a second, "" where they were not measured."""
    if usage.completion_tokens < 2 or usage.decode_seconds <= 0:
        return ""
    return f"{usage.completion_tokens / usage.decode_seconds:.0f} tokens/s"


def progress_words(progress: Progress) -> str:
    """ "loading demo 40%"; without a total only the phase."""
    return f"{progress.phase} {100 * progress.done // progress.total}%" if progress.total else progress.phase
