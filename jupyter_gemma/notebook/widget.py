"""Buttons under an answer: Stop, Copy, Regenerate. Used where the user says so: ``%config GemmaMagics.widgets = True``.

The answer itself is an ordinary display, and the buttons have an empty text beside them, so a front end without
widgets, or a saved page, shows the answer and nothing broken.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker
from jupyter_gemma.notebook.bundle import bundle, metadata
from jupyter_gemma.notebook.display import NotebookView, View

WIDGET_TYPE = "application/vnd.jupyter.widget-view+json"


class BelowView(NotebookView):
    """An answer as one more output of an ``ipywidgets.Output``, in which displays are not updated."""

    def __init__(self, below: Any) -> None:
        super().__init__()
        self._below = below
        self._before = below.outputs

    def _show(self, answer: Answer, status: str = "") -> None:
        output = {"output_type": "display_data", "data": bundle(answer, status), "metadata": metadata(answer)}
        self._below.outputs = (*self._before, output)


class WidgetView:
    """An answer with buttons.

    Args:
        asker: asks again for Regenerate.
        inner: shows the answer itself.
    """

    def __init__(self, asker: Asker, inner: View | None = None) -> None:
        self._asker = asker
        self._inner = inner or NotebookView()
        self._buttons: dict[str, Any] = {}
        self.answer: Answer | None = None
        self.again: list[Answer] = []

    def update(self, answer: Answer, status: str = "") -> None:
        """Show what there is, and the Stop button."""
        self._inner.update(answer, status)
        if not self._buttons:
            self._show_buttons()

    def finish(self, answer: Answer) -> Answer:
        """Show the last state; what can be done with it now."""
        self.answer = self._inner.finish(answer)
        if not self._buttons:
            self._show_buttons()
        self._buttons["Stop"].disabled = True
        for name in ("Copy", "Regenerate"):
            self._buttons[name].disabled = False
        return self.answer

    def _show_buttons(self) -> None:
        import ipywidgets
        from IPython.display import display

        actions = {"Stop": self.stop, "Copy": self.copy, "Regenerate": self.regenerate}
        for name, action in actions.items():
            button = ipywidgets.Button(description=name, disabled=name != "Stop")
            button.on_click(lambda _, action=action: action())
            self._buttons[name] = button
        self._below, self._scripts = ipywidgets.Output(), ipywidgets.Output()
        box = ipywidgets.VBox([ipywidgets.HBox(list(self._buttons.values())), self._below, self._scripts])
        view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
        display({WIDGET_TYPE: view, "text/plain": ""}, raw=True)  # type: ignore[no-untyped-call]
        # ipykernel notes that this comm spoke from the busy main thread and would let the click wait there; without
        # the note the click goes to the subshell that the front end names.
        vars(self._buttons["Stop"].comm or self).pop("_reply_subshell_id", None)

    def stop(self) -> None:
        """Interrupt the cell. Reaches a busy kernel where the front end sends clicks through a subshell."""
        if self.answer is None:
            os.kill(os.getpid(), signal.SIGINT)

    def copy(self) -> None:
        """Put the code of the answer, or its text, on the clipboard of the browser."""
        from IPython.display import Javascript, display

        if self.answer is not None:
            text = json.dumps(self.answer.code or self.answer.text).replace("</", "<\\/")
            with self._scripts:
                display(Javascript(f"navigator.clipboard.writeText({text})"))  # type: ignore[no-untyped-call]

    def regenerate(self) -> None:
        """Ask again with the next seed; the new answer stands below, and both are kept."""
        last = self.again[-1] if self.again else self.answer
        if last is None or last.request is None:
            return
        seed = (last.request.sampling.seed or 0) + 1
        self.again.append(self._asker.again(last, BelowView(self._below), seed))
