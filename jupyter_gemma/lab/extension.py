"""The Jupyter Server extension: one application object that adds the routes."""

from __future__ import annotations

from jupyter_server.extension.application import ExtensionApp

from jupyter_gemma.lab.routes import StatusHandler
from jupyter_gemma.settings import load_settings


class GemmaExtension(ExtensionApp):
    """Adds ``/jupyter-gemma/*`` to Jupyter Server; starts nothing by itself."""

    name = "jupyter_gemma"
    extension_url = "/jupyter-gemma/status"

    def initialize_settings(self) -> None:
        """Read our settings once, for all handlers; a wrong one stops the extension with its message."""
        self.settings["gemma_settings"] = load_settings()

    def initialize_handlers(self) -> None:
        """Register the routes; Jupyter puts its base URL before them."""
        self.handlers.append((r"/jupyter-gemma/status", StatusHandler))
