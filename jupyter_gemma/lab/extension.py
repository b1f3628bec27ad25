"""The Jupyter Server extension: one application object that adds the routes."""

from __future__ import annotations

from pathlib import Path

from jupyter_core.paths import jupyter_data_dir
from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Unicode

from jupyter_gemma.lab.conversations import Conversations
from jupyter_gemma.lab.routes import ROUTES
from jupyter_gemma.settings import load_settings


class GemmaExtension(ExtensionApp):
    """Adds ``/jupyter-gemma/*`` to Jupyter Server; starts nothing by itself."""

    name = "jupyter_gemma"
    extension_url = "/jupyter-gemma/status"

    conversations_dir = Unicode(help="Folder of the panel's conversations.").tag(config=True)
    allow_base_url = Bool(True, help="Whether the panel may choose another server to answer.").tag(config=True)

    def _conversations_dir_default(self) -> str:
        return str(Path(jupyter_data_dir()) / "gemma" / "conversations")

    def initialize_settings(self) -> None:
        """Read our settings once, for all handlers; a wrong one stops the extension with its message."""
        self.settings["gemma_settings"] = load_settings()
        self.settings["gemma_conversations"] = Conversations(Path(self.conversations_dir))
        self.settings["gemma_allow_base_url"] = self.allow_base_url

    def initialize_handlers(self) -> None:
        """Register the routes; Jupyter puts its base URL before them."""
        self.handlers.extend(ROUTES)
