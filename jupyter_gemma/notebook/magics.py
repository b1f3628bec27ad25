"""``%gemma`` and ``%%gemma``: parse to :class:`Options` and a prompt, ask, return the answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from IPython.core.completer import SimpleCompletion, SimpleMatcherResult, context_matcher
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Bool, Enum, Int, Unicode

from jupyter_gemma.errors import BadOption, GemmaError
from jupyter_gemma.notebook.accessor import register_accessor
from jupyter_gemma.notebook.answer import Answer, Stopped
from jupyter_gemma.notebook.api import Gemma, process_gemma
from jupyter_gemma.notebook.asking import Labelled
from jupyter_gemma.notebook.commands import Call, help_text, split
from jupyter_gemma.notebook.complete import matches
from jupyter_gemma.notebook.context import attach, fill
from jupyter_gemma.notebook.display import SilentView, View, view_here
from jupyter_gemma.notebook.options import FORMATS, Options, parse
from jupyter_gemma.notebook.preview import Preview, preview
from jupyter_gemma.notebook.schemas import schema_from_source
from jupyter_gemma.notebook.session import Session

Function = TypeVar("Function", bound=Callable[..., Any])

_QUESTION = re.compile(r"^(?P<before>\s*(?:[\w.,\[\]'\" ]+=\s*)?)%gemma[ \t]+(?P<prompt>\S.*\?)[ \t]*$", re.MULTILINE)


def _with_help(function: Function) -> Function:
    """``%gemma?`` shows the docstring: it lists the commands and options."""
    function.__doc__ = f"{function.__doc__}\n\n{help_text()}"
    return function


@magics_class
class GemmaMagics(Magics):
    """The magic, its settings (``%config GemmaMagics``), and what it keeps for its notebook."""

    model = Unicode("", help="Model to ask; empty: the server's default.").tag(config=True)
    format = Enum(FORMATS, "markdown", help="Form of the answers.").tag(config=True)
    system = Unicode("", help="How to answer, told to the model before every question.").tag(config=True)
    rows = Int(5, min=0, help="Rows of a table that are sent cell by cell; 0: no cell value leaves a frame.").tag(
        config=True
    )
    cache = Bool(True, help="Show what was answered before, where the same is asked again.").tag(config=True)
    keep = Bool(False, help="Save in the notebook all that is asked, to learn from the answers.").tag(config=True)
    widgets = Bool(False, help="Show buttons (Stop, Copy, Regenerate, Insert cell); needs ipywidgets.").tag(config=True)

    def __init__(self, shell: Any, gemma: Gemma | None = None) -> None:
        super().__init__(shell)
        self.before: dict[str, Any] = {}
        self.session = Session(shell, (gemma or process_gemma()).asker)
        # output_can_be_silenced is not used: it reads the prompt as Python and raises at a lone bracket.

    @no_var_expand
    @_with_help
    @needs_local_scope
    @line_cell_magic
    def gemma(
        self, line: str, cell: str | None = None, local_ns: Mapping[str, Any] | None = None
    ) -> Answer | Preview | None:
        """Ask the model about words and objects."""
        text = line if cell is None else f"{line}\n{cell}"
        silent = cell is None and text.rstrip().endswith(";")
        scope = self.session.scope(local_ns)
        options, prompt = self._parsed(text.rstrip().removesuffix(";") if silent else text, scope)
        view = SilentView() if silent else self._view()
        try:
            answer = self._run(prompt.strip(), options, scope, view)
        except Stopped as stopped:
            self._keep(options, stopped.answer)
            raise
        self._keep(options, answer)
        return None if silent else answer

    def _parsed(self, text: str, scope: Mapping[str, Any]) -> tuple[Options, str]:
        names = ("model", "format", "system", "rows", "cache", "keep")
        defaults = Options(**{name: getattr(self, name) for name in names})
        try:
            options, prompt = parse(text, defaults)
            schema = schema_from_source(options.schema, scope) if options.schema else None
        except BadOption as error:
            raise UsageError(str(error)) from error
        return replace(options, schema=schema), prompt

    def _view(self) -> View:
        if not self.widgets:
            return view_here()
        from jupyter_gemma.notebook.widget import WidgetView

        return WidgetView(self.session.asker)

    def _keep(self, options: Options, answer: Answer | Preview | None) -> None:
        if not isinstance(answer, Answer):
            return
        self.session.last = answer
        if options.out:
            self.session.shell.user_ns[options.out] = answer

    def _run(self, prompt: str, options: Options, scope: Mapping[str, Any], view: View) -> Answer | Preview | None:
        if options.new:
            self.session.conversation.reset()
        found = split(prompt)
        if found is not None:
            command, argument = found
            return command.run(self.session, Call(argument, options, scope, view))
        known = self.session.known(scope)
        labelled = self._attached(options, scope, known) + fill(prompt, scope, known)
        if not prompt and not options.attach:
            raise UsageError("There is no prompt. %gemma /help shows how to ask.")
        asker, conversation = self.session.asker, self.session.conversation
        if options.show_prompt:
            return preview(asker.client, asker.question(labelled, options, conversation))
        return asker.ask(labelled, options, view, conversation)

    def _attached(self, options: Options, scope: Mapping[str, Any], known: set[str]) -> list[Labelled]:
        try:
            return attach(options.attach, scope, known) if options.attach else []
        except BadOption as error:
            raise UsageError(str(error)) from error

    @context_matcher(identifier="GemmaMagics.completions")  # type: ignore[untyped-decorator]
    def completions(self, context: Any) -> SimpleMatcherResult:
        """What Tab offers after ``%gemma``."""
        text = context.full_text[: _offset(context.full_text, context.cursor_position, context.cursor_line)]
        names = [name for name in self.session.known(self.session.shell.user_ns) if not name.startswith("_")]
        found = matches(text, names, self._models() if "-m" in text else ())
        if found is None:
            return SimpleMatcherResult(completions=[], suppress=False)
        typed, words = found
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text=word, type="gemma") for word in words],
            matched_fragment=typed,
            suppress=bool(words),
        )

    def _models(self) -> list[str]:
        """Names of the models, if a server runs: Tab starts none."""
        try:
            client = self.session.asker.client
            running = client.status().get("state") != "stopped"
            return [card.name for card in client.models()] if running else []
        except GemmaError:
            return []


def _offset(text: str, column: int, line: int) -> int:
    """Where the cursor stands in ``text``."""
    return sum(len(each) + 1 for each in text.split("\n")[:line]) + column


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
    shell.Completer.custom_matchers.append(magics.completions)
    shell.events.register("pre_run_cell", register_accessor)
    if hasattr(shell.display_pub, "register_hook"):
        shell.display_pub.register_hook(magics.session.shown)
    return magics


def unload(shell: Any) -> None:
    """Take the magic out again and put back what was there."""
    magics = shell.magics_manager.registry.pop("GemmaMagics")
    for kind, before in magics.before.items():
        table = shell.magics_manager.magics[kind]
        del table["gemma"]
        if before is not None:
            table["gemma"] = before
    shell.configurables.remove(magics)
    shell.input_transformer_manager.line_transforms.remove(keep_question_marks)
    shell.Completer.custom_matchers.remove(magics.completions)
    shell.events.unregister("pre_run_cell", register_accessor)
    if hasattr(shell.display_pub, "unregister_hook"):
        shell.display_pub.unregister_hook(magics.session.shown)
