"""A new cell below the one that ran, placed by our plugin in JupyterLab and Notebook 7; other front ends have none."""

from __future__ import annotations

from collections.abc import Callable

import comm

TARGET = "jupyter_gemma.cells"  # as in labextension/src/insertion.ts


class CellBelow:
    """Asks the front end whether it can place cells.

    Args:
        cell: id of the cell that runs, by the front end.
        ready: is called once it says that it can.
    """

    def __init__(self, cell: str, ready: Callable[[], None]) -> None:
        self._cell = cell
        self._asked = comm.create_comm(target_name=TARGET, primary=False)
        self._asked.on_msg(lambda _: ready())
        self._asked.open({"cell": cell})

    def insert(self, cell_type: str, source: str) -> None:
        """Place ``source`` in a cell of ``cell_type``, "code" or "markdown".

        A comm is opened for each, so that it reaches a page that was loaded after the cell had run.
        """
        data = {"cell": self._cell, "cell_type": cell_type, "source": source}
        comm.create_comm(target_name=TARGET, data=data).close()
