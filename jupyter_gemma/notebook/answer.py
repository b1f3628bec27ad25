"""The answer that a question returns: it shows itself, and is read as code, JSON, a typed value or a data frame."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from jupyter_gemma.notebook.bundle import bundle, metadata
from jupyter_gemma.notebook.exchange import Exchange
from jupyter_gemma.notebook.reading import code_of, frame_of, json_of


@dataclass(frozen=True)
class Answer(Exchange):
    """What a model answered; see :class:`Exchange` for its fields. ``await answer`` gives the answer itself."""

    def __str__(self) -> str:
        return self.text

    def __await__(self) -> Generator[None, None, Answer]:
        yield from ()
        return self

    @property
    def code(self) -> str:
        """The code of the answer: its fenced blocks, joined; all of it, where only code was asked for."""
        return code_of(self.text, self.format == "code")

    @property
    def json(self) -> Any:
        """The JSON of the answer, which may stand in a fenced block.

        Raises:
            BadAnswer: it holds none.
        """
        return json_of(self.text)

    @property
    def value(self) -> Any:
        """The answer as the type that ``schema`` asked for; without one, its text.

        Raises:
            BadAnswer: it is not of that type.
        """
        return self.schema.read(self.text) if self.schema else self.text

    @property
    def frame(self) -> Any:
        """The rows of the answer as a pandas data frame.

        Raises:
            BadAnswer: it holds no rows.
        """
        return frame_of(self.text)

    def _ipython_display_(self) -> None:
        """Show nothing where the stream has just shown this answer; else leave it to the rich repr."""
        module = sys.modules.get("IPython")
        shell = module.get_ipython() if module else None
        if shell is None or self.shown_in != shell.execution_count:
            raise NotImplementedError

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict[str, str], Any]:
        return bundle(self), metadata(self)


class Stopped(KeyboardInterrupt):
    """The user stopped an answer; ``answer`` is what had come until then."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("The answer was stopped.")
        self.answer = answer

    def _render_traceback_(self) -> list[str]:
        return ["Stopped: the part that had come is kept."]
