"""The slash commands: a table of names, what they do, and how they are used."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from IPython.core.error import UsageError

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook import coding, transcript
from jupyter_gemma.notebook.answer import Answer
from jupyter_gemma.notebook.asking import Labelled
from jupyter_gemma.notebook.bundle import progress_words
from jupyter_gemma.notebook.context import evaluate
from jupyter_gemma.notebook.display import View
from jupyter_gemma.notebook.options import Options, help_lines
from jupyter_gemma.notebook.session import Session
from jupyter_gemma.notebook.verify import compare
from jupyter_gemma.types import Progress


@dataclass(frozen=True, slots=True)
class Call:
    """A command as typed: what stands after its name, the options before it, the user's names, where to show."""

    argument: str
    options: Options
    scope: Mapping[str, Any]
    view: View


@dataclass(frozen=True, slots=True)
class Command:
    """``run(session, call)`` gives an answer, or None if it has written what there is to say."""

    usage: str
    help: str
    run: Callable[[Session, Call], Answer | None]
    words: tuple[str, ...] = ()


# -- asking ------------------------------------------------------------------------------------------------------


def _explain(session: Session, call: Call) -> Answer | None:
    if call.argument == "cell":
        return session.asker.ask(coding.explain_cell(session), call.options, call.view, session.conversation)
    found = {"plot": session.last_figure, "frame": session.last_frame, "": session.last_shown}.get(call.argument)
    is_variable = call.argument in session.known(call.scope)
    subject = found() if found and not is_variable else _subject(call.argument, call.scope)
    if subject is None:
        wanted = {"plot": "picture", "frame": "table"}.get(call.argument, "picture or table")
        raise UsageError(f"No cell has shown a {wanted} yet. Name one: %gemma /explain fig")
    return session.asker.explain(subject, call.options, call.view, session.conversation)


def _transcribe(session: Session, call: Call) -> Answer | None:
    try:
        argument, wanted = transcript.parse(call.argument)
    except BadOption as error:
        raise UsageError(str(error)) from error
    if not argument:
        raise UsageError("/transcribe needs a clip: %gemma /transcribe clip")
    subject = _subject(argument, call.scope)
    return session.asker.transcribe(subject, wanted, call.options, call.view, session.conversation)


def _fix(session: Session, call: Call) -> Answer | None:
    fault = coding.last_fault(session)
    labelled = coding.fix_question(session, fault, call.argument)
    options = replace(call.options, format="code")
    answer = session.asker.ask(labelled, options, call.view, session.conversation)
    coding.offer_fix(session, fault, answer)
    return answer


def _code(session: Session, call: Call) -> Answer | None:
    labelled = coding.code_question(session, call.argument, call.scope)
    answer = session.asker.ask(labelled, replace(call.options, format="code"), call.view, session.conversation)
    session.offer(answer.code)
    return answer


def _doc(session: Session, call: Call) -> Answer | None:
    subject = _subject(call.argument, call.scope) if call.argument else None
    return session.asker.ask(coding.doc_question(session, subject), call.options, call.view, session.conversation)


def _summarize(session: Session, call: Call) -> Answer | None:
    if call.argument not in ("", "notebook"):
        subject = _subject(call.argument, call.scope)
        return session.asker.ask(coding.summary_question(subject), call.options, call.view, session.conversation)
    return session.asker.ask(coding.notebook_question(session), call.options, call.view, session.conversation)


def _verify(session: Session, call: Call) -> Answer | None:
    kept = session.answer(call.argument)
    answer = session.asker.again(kept, call.view)
    _write(compare(kept, answer))
    return answer


def _subject(expression: str, scope: Mapping[str, Any]) -> Labelled:
    """The object a command is about; braces around it may stand or not."""
    bare = expression[1:-1].strip() if expression.startswith("{") and expression.endswith("}") else expression
    try:
        ast.parse(bare, mode="eval")
    except SyntaxError as error:
        raise UsageError(f"{bare} is no Python expression. A command takes one object: %gemma /explain fig") from error
    return bare, evaluate(bare, scope)


# -- server and conversation -------------------------------------------------------------------------------------


def _status(session: Session, call: Call) -> None:
    for key, value in session.asker.client.status().items():
        _write(f"{key}: {value}")


def _load(session: Session, call: Call) -> None:
    def progress(progress: Progress) -> None:
        call.view.update(Answer(), progress_words(progress))

    status = session.asker.client.load(call.argument or call.options.model, progress)
    call.view.finish(Answer(f"{status.get('model')} is loaded.", finish="stop", format="text"))


def _unload(session: Session, call: Call) -> None:
    session.asker.client.unload()
    _write("No model is loaded.")


def _models(session: Session, call: Call) -> None:
    loaded = session.asker.client.status().get("model")
    for card in session.asker.client.models():
        words = [card.title, ", ".join(card.modalities), "loaded" if card.name == loaded else ""]
        _write(f"{card.name}: {' · '.join(filter(None, words))}")


def _history(session: Session, call: Call) -> None:
    turns = session.conversation.turns
    if not turns:
        _write("The conversation is empty.")
    for number, turn in enumerate(turns, start=1):
        media = f" [{', '.join(turn.answer.sent)}]" if turn.answer.sent else ""
        _write(
            f"{number}. You: {_brief(turn.question.text)}{media}\n   {turn.answer.model}: {_brief(turn.answer.text)}"
        )


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _reset(session: Session, call: Call) -> None:
    session.conversation.reset()
    _write("The conversation begins anew.")


def _help(session: Session, call: Call) -> None:
    _write(help_text())


def _write(words: str) -> None:
    sys.stdout.write(f"{words}\n")


COMMANDS: dict[str, Command] = {
    "explain": Command(
        "[plot|frame|cell|expression]",
        "a figure, picture, table or cell; without a word the last that was shown",
        _explain,
        ("plot", "frame", "cell"),
    ),
    "transcribe": Command(
        "clip [--srt|--vtt|--segments] [--language WORD] [--translate WORD]",
        "a clip as text, as subtitles, or as a table of segments",
        _transcribe,
        transcript.FLAGS,
    ),
    "fix": Command("[words]", "the last exception: what to change, and the corrected cell as the next one", _fix),
    "code": Command("what it should do", "writes the next cell", _code),
    "doc": Command("[object]", "documentation of an object, or of the last cell", _doc),
    "summarize": Command("[notebook|object]", "what this notebook does, or an object", _summarize, ("notebook",)),
    "verify": Command("[variable]", "asks an answer's question again and compares", _verify),
    "status": Command("", "the model server and what it holds", _status),
    "load": Command("[model]", "load a model now", _load),
    "unload": Command("", "free the model's memory", _unload),
    "models": Command("", "the models of this machine", _models),
    "history": Command("", "the conversation so far", _history),
    "reset": Command("", "begin a new conversation", _reset),
    "help": Command("", "this list", _help),
}
_NAME = re.compile(r"/(?P<name>[a-z]+)(?=\s|$)")


def split(prompt: str) -> tuple[Command, str] | None:
    """The command that ``prompt`` begins with and what follows it; None for an ordinary prompt.

    Raises:
        UsageError: no command has that name; the nearest is named.
    """
    match = _NAME.match(prompt)
    if match is None:
        return None
    name = match["name"]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean /{near[0]}?" if near else f"There are /{', /'.join(COMMANDS)}."
        raise UsageError(f"There is no command /{name}. {hint}")
    return COMMANDS[name], prompt[match.end() :].strip()


def help_text() -> str:
    """How to ask, all commands and all options."""
    commands = [f"/{name} {command.usage}".strip() + f": {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "%gemma [options] prompt, or %%gemma [options] and the prompt in the cell.",
            "{expression} sends the value where it stands: a frame as a digest, a figure as pixels, a clip as sound.",
            "",
            "Commands:",
            *commands,
            "",
            "Options, before the prompt:",
            *help_lines(),
        ]
    )
