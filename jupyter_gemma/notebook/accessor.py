"""``df.gemma("…")``: questions to a data frame or series, once the user has imported pandas."""

from __future__ import annotations

import sys
from typing import Any

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.api import process_gemma


class GemmaAccessor:
    """Asks about the frame it was taken from."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __call__(self, prompt: str, *objects: Any, **options: Any) -> Answer:
        """As ``gemma(prompt, frame, *objects)``."""
        return process_gemma()(prompt, self._frame, *objects, **options)

    def map(self, prompt: str, **options: Any) -> Any:
        """As ``gemma.map``, over the values of a series or the rows (as dicts) of a frame."""
        rows = self._frame.to_dict("records") if hasattr(self._frame, "columns") else self._frame
        return process_gemma().map(rows, prompt, **options)


def register_accessor(*event: Any) -> None:
    """Give frames and series of pandas their accessor, if pandas is loaded and they have none; imports nothing.

    An IPython event callback.
    """
    pandas = sys.modules.get("pandas")
    extensions = getattr(getattr(pandas, "api", None), "extensions", None)
    if pandas is None or extensions is None or hasattr(pandas.DataFrame, "gemma"):
        return
    extensions.register_dataframe_accessor("gemma")(GemmaAccessor)
    extensions.register_series_accessor("gemma")(GemmaAccessor)
