"""jupyter-gemma: a local, private, multimodal notebook assistant.

Importing this package is instant: it loads no torch and does no work. ``%load_ext jupyter_gemma`` adds the
``%gemma`` and ``%%gemma`` magics; ``from jupyter_gemma import gemma`` is the Python API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jupyter_gemma.notebook.api import Gemma

    gemma: Gemma

__version__ = "0.1.0"


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext jupyter_gemma``: add the magics."""
    from jupyter_gemma.notebook.magics import load

    load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext jupyter_gemma``: take the magics out again."""
    from jupyter_gemma.notebook.magics import unload

    unload(ipython)


def __getattr__(name: str) -> Any:
    """``gemma``, made when it is first asked for."""
    if name != "gemma":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jupyter_gemma.notebook.api import process_gemma

    return process_gemma()


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """What Jupyter Server loads: the application of ``lab/``."""
    from jupyter_gemma.lab.extension import GemmaExtension

    return [{"module": "jupyter_gemma.lab.extension", "app": GemmaExtension}]
