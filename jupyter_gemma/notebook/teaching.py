"""Teaching a model from a notebook: tables and answers become files, a process of its own learns from them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_gemma.errors import ModelError
from jupyter_gemma.notebook.lessons import lessons_of, write_lessons
from jupyter_gemma.settings import Settings


def teach(data: Any, out: str, settings: Settings, keys: Mapping[str, Any], show: bool) -> Path:
    """See :meth:`jupyter_gemma.notebook.api.Gemma.finetune`."""
    folder = Path(settings.adapters_dir) / out
    files = {"data": data, **{key: value for key, value in keys.items() if key == "valid"}}
    paths = {key: _file(value, folder / f"{key}.jsonl") for key, value in files.items()}
    options = {"out": folder, "models_dir": settings.models_dir, **keys, **paths}
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


def _file(data: Any, path: Path) -> Path:
    """The file that ``data`` names, else ``path``, with the lines that it becomes."""
    if isinstance(data, str | Path):
        return Path(data)
    write_lessons(lessons_of(data), path)
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
