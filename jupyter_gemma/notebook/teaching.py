"""Teaching a model from a notebook: a table becomes a file of conversations, a process of its own learns from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jupyter_gemma.errors import BadOption, ModelError
from jupyter_gemma.settings import Settings

_MEDIA = ("image", "audio")


def teach(data: Any, out: str, settings: Settings, keys: Mapping[str, Any], show: bool) -> Path:
    """See :meth:`jupyter_gemma.notebook.api.Gemma.finetune`."""
    folder = Path(settings.adapters_dir) / out
    path = Path(data) if isinstance(data, str | Path) else _write_table(data, folder)
    options = {"data": path, "out": folder, "models_dir": settings.models_dir, **keys}
    words = [word for key, value in options.items() for word in _option(key, value)]
    command = [sys.executable, "-m", "jupyter_gemma", "finetune", *words]
    said = [""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        shown = _shown() if show else None
        try:
            for line in process.stdout or ():
                said.append(line.strip())
                if shown is not None:
                    shown.update(_text(said[-1]))
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode != 0:
        raise ModelError("Teaching failed: " + " ".join(said[-2:]), "Correct that and call it again.")
    if shown is not None:
        _show_curve(folder / "loss.svg")
    return folder


def conversations(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table as conversations; pictures and clips are made absolute paths.

    Raises:
        BadOption: it has no columns ``prompt`` and ``answer``.
    """
    names = [str(name) for name in getattr(table, "columns", ())]
    if not {"prompt", "answer"} <= set(names):
        raise BadOption(
            f"The table has the columns {', '.join(names) or 'of no table'}.", "It needs prompt and answer."
        )
    for row in table.to_dict("records"):
        media = [
            {"type": kind, kind: str(Path(row[kind]).resolve())} for kind in _MEDIA if isinstance(row.get(kind), str)
        ]
        asked = [*media, {"type": "text", "text": str(row["prompt"])}]
        yield {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": str(row["answer"])}]}


def _write_table(table: Any, folder: Path) -> Path:
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in conversations(table)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _option(key: str, value: Any) -> list[str]:
    option = f"--{key.replace('_', '-')}"
    return ([option] if value else []) if isinstance(value, bool) else [option, str(value)]


def _shown() -> Any:
    from IPython.display import display

    return display(_text("starting"), display_id=True)  # type: ignore[no-untyped-call]


def _text(words: str) -> Any:
    from IPython.display import Pretty

    return Pretty(words)  # type: ignore[no-untyped-call]


def _show_curve(path: Path) -> None:
    from IPython.display import SVG, display

    if path.exists():
        display(SVG(filename=str(path)))  # type: ignore[no-untyped-call]
