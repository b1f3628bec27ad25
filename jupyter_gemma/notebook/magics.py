"""``%gemma`` and ``%%gemma``: parse to :class:`Options` and a prompt, ask, return the answer."""

from __future__ import annotations

import ast
import difflib
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.api import Conversation, Gemma, Labelled, process_gemma
from jupyter_gemma.notebook.context import attach, evaluate, fill, item_of
from jupyter_gemma.notebook.display import Answer, SilentView, Stopped, View, view_here
from jupyter_gemma.notebook.items import Limits
from jupyter_gemma.notebook.options import Options, help_lines, parse
from jupyter_gemma.types import ImagePart

_COMMAND = re.compile(r"/(?P<name>[a-z]+)(?=\s|$)")
_QUESTION = re.compile(r"^(?P<before>\s*(?:[\w.,\[\]'\" ]+=\s*)?)%gemma[ \t]+(?P<prompt>\S.*\?)[ \t]*$", re.MULTILINE)


class Pictures:
    """Remembers the last picture that a cell showed, with the number of the cell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.last: bytes | None = None
        self.cell = 0

    def __call__(self, message: dict[str, Any]) -> dict[str, Any]:
        """Look at a message on its way to the front end; it goes on unchanged."""
        data = message.get("content", {}).get("data", {})
        for kind in ("image/png", "image/jpeg"):
            if isinstance(data.get(kind), str):
                import base64

                self.last, self.cell = base64.b64decode(data[kind]), self._shell.execution_count
        return message


@magics_class
class GemmaMagics(Magics):
    """The magic, and what it keeps for its notebook: the conversation and the last picture shown."""

    def __init__(self, shell: Any, gemma: Gemma | None = None) -> None:
        super().__init__(shell)
        self.ip = shell
        self.before: dict[str, Any] = {}
        self.asker = gemma or process_gemma()
        self.conversation = Conversation()
        self.pictures = Pictures(shell)
        # output_can_be_silenced is not used: it reads the prompt as Python and raises at a lone bracket.

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def gemma(self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None) -> Answer | None:
        """Ask the model: ``%gemma [options] prompt``, or ``%%gemma [options]`` and the prompt in the cell.

        {expression} sends the value where it stands: a frame as a digest, a figure as pixels, a clip as sound.
        %gemma /help lists the options and the commands.
        """
        text = line if cell is None else f"{line}\n{cell}"
        silent = cell is None and text.rstrip().endswith(";")
        try:
            options, prompt = parse(text.rstrip().removesuffix(";") if silent else text)
        except BadOption as error:
            raise UsageError(str(error)) from error
        view = SilentView() if silent else view_here()
        scope = {**self.ip.user_ns, **(local_ns or {})}
        try:
            answer = self._run(prompt.strip(), options, scope, view)
        except Stopped as stopped:
            self._keep(options, stopped.answer)
            raise
        self._keep(options, answer)
        return None if silent else answer

    def _keep(self, options: Options, answer: Answer | None) -> None:
        if options.out and answer is not None:
            self.ip.user_ns[options.out] = answer

    def _run(self, prompt: str, options: Options, scope: Mapping[str, Any], view: View) -> Answer | None:
        if options.new:
            self.conversation.reset()
        match = _COMMAND.match(prompt)
        if match:
            return _command(match["name"])(self, prompt[match.end() :].strip(), options, scope, view)
        known = self._known(scope)
        labelled = self._attached(options, scope, known) + fill(prompt, scope, known)
        if not prompt and not options.attach:
            raise UsageError("There is no prompt. %gemma /help shows how to ask.")
        return self.asker.ask(labelled, options, view, self.conversation)

    def _known(self, scope: Mapping[str, Any]) -> set[str]:
        """The user's own variables; IPython's are hidden, but for ``_`` and ``Out``, unless they were assigned."""
        hidden = self.ip.user_ns_hidden
        return {
            name
            for name, value in scope.items()
            if name in ("_", "__", "___", "Out") or name not in hidden or hidden[name] is not value
        }

    def _attached(self, options: Options, scope: Mapping[str, Any], known: set[str]) -> list[Labelled]:
        try:
            return attach(options.attach, scope, known) if options.attach else []
        except BadOption as error:
            raise UsageError(str(error)) from error

    # -- commands: (argument, options, scope, view) -> answer or None ------------------------------------------

    def explain(self, argument: str, options: Options, scope: Mapping[str, Any], view: View) -> Answer:
        """/explain [expression]: a figure, picture or table; without one, the last that was shown."""
        subject = _subject(argument, scope) if argument else self._last_shown()
        return self.asker.command("explain", subject, options, view, self.conversation)

    def transcribe(self, argument: str, options: Options, scope: Mapping[str, Any], view: View) -> Answer:
        """/transcribe expression: a clip."""
        if not argument:
            raise UsageError("/transcribe needs a clip: %gemma /transcribe clip")
        return self.asker.command("transcribe", _subject(argument, scope), options, view, self.conversation)

    def status(self, argument: str, options: Options, scope: Mapping[str, Any], view: View) -> None:
        """/status: the model server and what it holds."""
        for key, value in self.asker.client.status().items():
            sys.stdout.write(f"{key}: {value}\n")

    def reset(self, argument: str, options: Options, scope: Mapping[str, Any], view: View) -> None:
        """/reset: begin a new conversation."""
        self.conversation.reset()
        sys.stdout.write("The conversation begins anew.\n")

    def help(self, argument: str, options: Options, scope: Mapping[str, Any], view: View) -> None:
        """/help: this list."""
        about = [line.strip() for line in (GemmaMagics.gemma.__doc__ or "").splitlines()]
        commands = [(handler.__doc__ or "").strip() for handler in COMMANDS.values()]
        sys.stdout.write(
            "\n".join([*about, "Commands:", *commands, "", "Options, before the prompt:", *help_lines()]) + "\n"
        )

    def _last_shown(self) -> Labelled:
        """The figure being drawn in this cell, else the last picture or table that a cell showed."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None and pyplot.get_fignums():
            return "the current figure", pyplot.gcf()
        for cell, value in sorted(self.ip.user_ns["Out"].items(), reverse=True):
            if self.pictures.last is not None and self.pictures.cell >= cell:
                break
            if _is_explainable(value):
                return f"Out[{cell}]", value
        if self.pictures.last is None:
            raise UsageError("No cell has shown a picture or table yet. Name one: %gemma /explain fig")
        return f"the picture of cell {self.pictures.cell}", self.pictures.last


Handler = Callable[[GemmaMagics, str, Options, Mapping[str, Any], View], "Answer | None"]
COMMANDS: dict[str, Handler] = {
    "explain": GemmaMagics.explain,
    "transcribe": GemmaMagics.transcribe,
    "status": GemmaMagics.status,
    "reset": GemmaMagics.reset,
    "help": GemmaMagics.help,
}


def _command(name: str) -> Handler:
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean /{near[0]}?" if near else f"There are /{', /'.join(COMMANDS)}."
    raise UsageError(f"There is no command /{name}. {hint}")


def _subject(expression: str, scope: Mapping[str, Any]) -> Labelled:
    """The object a command is about; braces around it may stand or not."""
    bare = expression[1:-1].strip() if expression.startswith("{") and expression.endswith("}") else expression
    try:
        ast.parse(bare, mode="eval")
    except SyntaxError as error:
        raise UsageError(f"{bare} is no Python expression. A command takes one object: %gemma /explain fig") from error
    return bare, evaluate(bare, scope)


def _is_explainable(value: object) -> bool:
    """Whether ``value`` is a table or becomes a picture."""
    if hasattr(value, "columns"):
        return True
    if isinstance(value, str | int | float | Answer):
        return False
    return any(isinstance(part, ImagePart) for part in item_of(value, Limits(rows=0)).parts)


def keep_question_marks(lines: list[str]) -> list[str]:
    """Let ``%gemma What is this?`` be a question: IPython would look up help for the last word.

    An IPython line transform; ``%gemma?`` still shows the help of the magic.
    """
    return [_QUESTION.sub(_as_call, line) for line in lines]


def _as_call(line: re.Match[str]) -> str:
    return f"{line['before']}get_ipython().run_line_magic('gemma', {line['prompt']!r})"


def load(shell: Any, gemma: Gemma | None = None) -> GemmaMagics:
    """Add the magic to ``shell`` and remember what it hides."""
    magics = GemmaMagics(shell, gemma)
    magics.before = {kind: shell.magics_manager.magics[kind].get("gemma") for kind in ("line", "cell")}
    shell.register_magics(magics)
    shell.input_transformer_manager.line_transforms.append(keep_question_marks)
    if hasattr(shell.display_pub, "register_hook"):
        shell.display_pub.register_hook(magics.pictures)
    return magics


def unload(shell: Any) -> None:
    """Take the magic out again and put back what was there."""
    magics = shell.magics_manager.registry.pop("GemmaMagics")
    for kind, before in magics.before.items():
        table = shell.magics_manager.magics[kind]
        del table["gemma"]
        if before is not None:
            table["gemma"] = before
    shell.input_transformer_manager.line_transforms.remove(keep_question_marks)
    if hasattr(shell.display_pub, "unregister_hook"):
        shell.display_pub.unregister_hook(magics.pictures)
