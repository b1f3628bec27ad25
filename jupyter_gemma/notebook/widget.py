"""Buttons under an answer: Stop, Copy, Regenerate, and Insert cell where the front end can.

Used where the user says so: ``%config GemmaMagics.widgets = True``. The answer itself is an ordinary display, and the
buttons have an empty text beside them, so a front end without widgets, or a saved page, shows the answer and nothing
broken.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker
from jupyter_gemma.notebook.bundle import bundle, metadata
from jupyter_gemma.notebook.display import NotebookView, View
from jupyter_gemma.notebook.harmless import harmless
from jupyter_gemma.notebook.inserting import CellBelow

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

    @property
    def newest(self) -> Answer | None:
        """The answer that Copy, Regenerate and Insert are about."""
        return self.again[-1] if self.again else self.answer

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
        for name, button in list(self._buttons.items()):
            button.disabled = name == "Stop"
        return self.answer

    def _show_buttons(self) -> None:
        import ipywidgets
        from IPython.display import display

        actions = {"Stop": self.stop, "Copy": self.copy, "Regenerate": self.regenerate}
        for name, action in actions.items():
            self._buttons[name] = _button(name, action, disabled=name != "Stop")
        self._row = ipywidgets.HBox(list(self._buttons.values()))
        self._below, self._scripts = ipywidgets.Output(), ipywidgets.Output()
        box = ipywidgets.VBox([self._row, self._below, self._scripts])
        view = {"version_major": 2, "version_minor": 0, "model_id": box.model_id}
        display({WIDGET_TYPE: view, "text/plain": ""}, raw=True)  # type: ignore[no-untyped-call]
        # ipykernel notes that this comm spoke from the busy main thread and would let the click wait there; without
        # the note the click goes to the subshell that the front end names.
        vars(self._buttons["Stop"].comm or self).pop("_reply_subshell_id", None)
        if cell := _cell_here():
            self._cell = CellBelow(cell, self._offer_insert)

    def _offer_insert(self) -> None:
        """The front end can place cells. It may say so from another thread, while the answer comes."""
        button = self._buttons["Insert cell"] = _button("Insert cell", self.insert, disabled=True)
        if self.answer is not None:
            button.disabled = False
        self._row.children = tuple(self._buttons.values())

    def stop(self) -> None:
        """Interrupt the cell. Reaches a busy kernel where the front end sends clicks through a subshell."""
        if self.answer is None:
            os.kill(os.getpid(), signal.SIGINT)

    def copy(self) -> None:
        """Put the code of the answer, or its text, on the clipboard of the browser."""
        from IPython.display import Javascript, display

        if self.newest is not None:
            text = json.dumps(self.newest.code or self.newest.text).replace("</", "<\\/")
            with self._scripts:
                display(Javascript(f"navigator.clipboard.writeText({text})"))  # type: ignore[no-untyped-call]

    def regenerate(self) -> None:
        """Ask again with the next seed; the new answer stands below, and both are kept."""
        last = self.newest
        if last is None or last.request is None:
            return
        seed = (last.request.sampling.seed or 0) + 1
        self.again.append(self._asker.again(last, BelowView(self._below), seed))

    def insert(self) -> None:
        """Place the code of the newest answer in a cell below; its text, as Markdown that loads nothing, without."""
        if self.newest is not None and self.newest.text:
            code = self.newest.code
            self._cell.insert("code" if code else "markdown", code or harmless(self.newest.text))


def _button(name: str, action: Callable[[], None], disabled: bool) -> Any:
    import ipywidgets

    button = ipywidgets.Button(description=name, disabled=disabled)
    button.on_click(lambda _: action())
    return button


def _cell_here() -> str:
    """The cell that runs, by the id that the front end gave it; "" where there is none."""
    from IPython import get_ipython

    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return str(parent.get("metadata", {}).get("cellId") or "")
