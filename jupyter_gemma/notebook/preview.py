"""``--show-prompt``: the exact prompt, with the tokens that each kind of input takes; nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jupyter_gemma.notebook.asking import Question
from jupyter_gemma.notebook.bundle import fact_lines, fenced
from jupyter_gemma.notebook.context import note_of
from jupyter_gemma.types import Message, Request, TextPart, Usage

if TYPE_CHECKING:
    from jupyter_gemma.client import Client


@dataclass(frozen=True)
class Preview:
    """What a question would send: ``text`` to be read, ``request`` as the client has it."""

    text: str
    facts: tuple[str, ...] = ()
    request: Request | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        small = [f"<sub>{line}</sub>" for line in self.facts]
        plain = "\n\n".join([self.text, *(f"[{line}]" for line in self.facts)])
        return {"text/markdown": "\n\n".join([fenced(self.text, "text"), *small]), "text/plain": plain}


def preview(client: Client, question: Question) -> Preview:
    """The prompt of ``question`` as the model's template writes it, with its tokens by modality.

    Another server does not tell what it makes of a question: of one at ``base_url`` the messages are shown.
    """
    facts = fact_lines(question.draft)
    if client.settings.base_url:
        return Preview("\n\n".join(map(_message, question.request.messages)), tuple(facts), question.request)
    told = client.render(question.request)
    counts = {name: int(told[name]) for name in ("text_tokens", "image_tokens", "audio_tokens")}
    return Preview(told["prompt"], tuple(fact_lines(replace(question.draft, usage=Usage(**counts)))), question.request)


def _message(message: Message) -> str:
    parts = [part.text if isinstance(part, TextPart) else f"[{note_of(part)}]" for part in message.parts]
    return "\n".join([f"--- {message.role} ---", *parts])
