"""The panel's conversations on disk: one JSON file each, in the user's own data folder.

A file holds ``id``, ``title``, ``updated`` (Unix seconds), ``revision`` and ``exchanges``, whose form is the panel's
business. The revision keeps two tabs from overwriting each other: who saves must know the newest one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from jupyter_gemma.errors import ConversationChanged, NoConversation, RequestError
from jupyter_gemma.lab.files import UNREADABLE, read_json, write_json

_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_SUMMARY = ("id", "title", "updated", "revision")


class Conversations:
    """What lies in ``folder``. Files that cannot be read are left alone and not listed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def summaries(self, words: str = "") -> list[dict[str, Any]]:
        """Newest first: id, title, updated, revision of those whose title, questions or answers contain ``words``."""
        found = [saved for saved in self._saved() if _mentions(saved, words.casefold())]
        found.sort(key=lambda saved: saved["updated"], reverse=True)
        return [{key: saved[key] for key in _SUMMARY} for saved in found]

    def read(self, name: str) -> dict[str, Any]:
        """The conversation.

        Raises:
            NoConversation: there is none of that id, or its file is damaged.
        """
        try:
            return read_json(self._path(name))
        except UNREADABLE as error:
            raise _missing(name) from error

    def write(self, name: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Save title and exchanges; the summary with the new revision.

        Args:
            name: the id; a new one makes a new conversation.
            content: ``title``, ``exchanges``, and the ``revision`` that this one follows (0: it is new).

        Raises:
            RequestError: content lacks a title or exchanges.
            ConversationChanged: the saved one has another revision.
        """
        title, exchanges, base = content.get("title"), content.get("exchanges"), content.get("revision", 0)
        if not isinstance(title, str) or not isinstance(exchanges, list):
            raise RequestError("A conversation needs a title and a list of exchanges.")
        path = self._path(name)
        if path.exists() and self.read(name)["revision"] != base:
            raise ConversationChanged("Another tab has continued this conversation.", "Go on in a copy.")
        saved = {"id": name, "title": title, "updated": time.time(), "revision": base + 1, "exchanges": exchanges}
        write_json(path, saved)
        return {key: saved[key] for key in _SUMMARY}

    def delete(self, name: str) -> None:
        """Delete it; raises NoConversation."""
        try:
            self._path(name).unlink()
        except FileNotFoundError as error:
            raise _missing(name) from error

    def _path(self, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise RequestError(f"{name[:70]!r} is no id of a conversation.", "Use letters, digits and hyphens.")
        return self._folder / f"{name}.json"

    def _saved(self) -> Iterator[dict[str, Any]]:
        for path in self._folder.glob("*.json"):
            with suppress(*UNREADABLE):
                saved = read_json(path)
                if all(key in saved for key in _SUMMARY):
                    yield saved


def _missing(name: str) -> NoConversation:
    return NoConversation(f"There is no conversation {name!r}.", "It may have been deleted in another tab.")


def _mentions(saved: Mapping[str, Any], words: str) -> bool:
    return any(words in text.casefold() for text in _texts(saved))


def _texts(saved: Mapping[str, Any]) -> Iterator[str]:
    yield str(saved["title"])
    for exchange in saved.get("exchanges", []):
        yield str(exchange.get("text", ""))
        yield from (str(answer.get("text", "")) for answer in exchange.get("answers", []))
