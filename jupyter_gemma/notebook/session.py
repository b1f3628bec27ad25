"""What a magic keeps for its notebook: who asks, the conversation, what cells showed, which names are the user's."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from jupyter_gemma.errors import RequestError
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Asker, Labelled
from jupyter_gemma.notebook.context import is_explainable
from jupyter_gemma.notebook.conversation import Conversation, Place
from jupyter_gemma.notebook.outputs import Shown


class WithPictures(dict[int, Any]):
    """``Out``, with the pictures of cells that gave out nothing else."""

    def __init__(self, out: Mapping[int, Any], shown: Shown) -> None:
        super().__init__(out)
        self._shown = shown

    def __missing__(self, cell: int) -> bytes:
        found = self._shown.picture(cell)
        if found is None:
            raise KeyError(cell)
        return found[1]


class Session:
    """One notebook's state.

    Args:
        shell: the IPython shell.
        asker: asks its questions.
    """

    def __init__(self, shell: Any, asker: Asker) -> None:
        self.shell = shell
        self.asker = asker
        self.conversation = Conversation(self.place)
        self.shown = Shown(shell)
        self.last: Answer | None = None

    def place(self) -> Place:
        """The cell that runs, by the id that the front end gave it, and the number of its run."""
        parent = self.shell.get_parent() if hasattr(self.shell, "get_parent") else {}
        return str((parent.get("metadata") or {}).get("cellId") or ""), self.shell.execution_count

    def scope(self, local: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The names that an expression may use; ``Out[3]`` is also the picture that cell 3 showed."""
        names = {**self.shell.user_ns, **(local or {})}
        if names.get("Out") is self.shell.user_ns.get("Out"):
            names["Out"] = WithPictures(names["Out"], self.shown)
        return names

    def known(self, scope: Mapping[str, Any]) -> set[str]:
        """The user's own variables; IPython's are hidden, but for ``_`` and ``Out``, unless they were assigned."""
        hidden = self.shell.user_ns_hidden
        return {
            name
            for name, value in scope.items()
            if name in ("_", "__", "___", "Out") or name not in hidden or hidden[name] is not value
        }

    def cells(self) -> list[tuple[int, str]]:
        """(number, source) of the cells that ran, this one left out."""
        sources = list(enumerate(self.shell.history_manager.input_hist_raw))
        return [(number, source) for number, source in sources[1:] if number < self.shell.execution_count]

    def offer(self, code: str) -> None:
        """Put ``code`` into the next cell. Not every front end does, so it is also shown by whoever calls this."""
        self.shell.set_next_input(code)

    def last_figure(self) -> Labelled | None:
        """The figure being drawn in this cell, else the last picture that a cell showed."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and pyplot.get_fignums():
            return "the current figure", pyplot.gcf()
        return self.shown.picture()

    def last_frame(self) -> Labelled | None:
        """The last table that a cell gave out."""
        for cell, value in sorted(self.shell.user_ns["Out"].items(), reverse=True):
            if hasattr(value, "columns"):
                return f"Out[{cell}]", value
        return None

    def last_shown(self) -> Labelled | None:
        """The current figure, else the last picture or table that a cell showed."""
        figure = self.last_figure()
        newest = self.shown.newest if figure else -1
        if figure is not None and figure[0] == "the current figure":
            return figure
        for cell, value in sorted(self.shell.user_ns["Out"].items(), reverse=True):
            if newest >= cell:
                break
            if is_explainable(value):
                return f"Out[{cell}]", value
        return figure

    def answer(self, name: str) -> Answer:
        """The answer in the variable ``name``; "": the last one.

        Raises:
            RequestError: there is none.
        """
        value = self.shell.user_ns.get(name) if name else self.last
        if not isinstance(value, Answer):
            raise RequestError(
                f"{name or 'This notebook'} holds no answer.", "Keep one: %gemma -o answer … and name it here."
            )
        return value
