"""The turns of a conversation, by the cell that made them: running a cell again replaces what it had said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.types import Message, TextPart

# The cell that runs ("" where the front end names none), and the number of its run.
Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """A question, its answer, and where it was asked."""

    question: Message
    answer: Answer
    place: Place = ("", 0)


class Conversation:
    """The turns so far, text and media.

    Args:
        place: says where the next turn is asked.
    """

    def __init__(self, place: Callable[[], Place] = lambda: ("", 0)) -> None:
        self.turns: list[Turn] = []
        self._place = place

    def messages(self) -> list[Message]:
        """What a model is sent of it."""
        said = [(turn.question, Message("assistant", (TextPart(turn.answer.text),))) for turn in self.turns]
        return [message for pair in said for message in pair]

    def rewind(self) -> None:
        """Take back what an earlier run of this cell said, and everything after it."""
        cell, run = self._place()
        for at, turn in enumerate(self.turns):
            if cell and turn.place[0] == cell and turn.place[1] != run:
                del self.turns[at:]
                return

    def add(self, question: Message, answer: Answer) -> None:
        """Remember a question and its answer."""
        self.turns.append(Turn(question, answer, self._place()))

    def reset(self) -> None:
        """Forget all turns."""
        self.turns.clear()
