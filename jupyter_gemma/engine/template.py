"""Messages to the text of a prompt: by the checkpoint's own chat template, or by ours where it has none.

The rendered text begins with ``<bos>``, written by the template; tokenisation adds no second one. It has one
``<|image|>`` for each picture and one ``<|audio|>`` for each clip, in their order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jupyter_gemma.engine.tokenizer import Tokenizer, gguf_file, read_json
from jupyter_gemma.engine.turns import IMAGE, gemma3_turns, gemma4_turns, plain_text
from jupyter_gemma.errors import BadCheckpoint, RequestError, UnsupportedInput
from jupyter_gemma.model.gguf_head import read_head
from jupyter_gemma.types import AudioPart, ImagePart, Message, TextPart, ToolCall, VideoPart

#: Writes HF messages, tool declarations and the thinking switch as text.
Writer = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]

_OURS: Mapping[str, Writer] = {"gemma4_unified": gemma4_turns, "gemma3_text": gemma3_turns}
#: Stands inside a control token's text in a message, so that it stays text. It has no width on the screen.
_BREAK = "\u200b"


class Template:
    """Renders the messages of one model.

    ``tool_responses``: tool results stand inside the assistant message that asked for them (Gemma 4's form),
    not in messages of the role "tool". ``tools``: whether it can declare tools.
    """

    def __init__(self, write: Writer, special: Sequence[str], *, tool_responses: bool, tools: bool = True) -> None:
        self._write = write
        self._guard = _Guard(special)
        self._tool_responses = tool_responses
        self._tools = tools

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] = (), thinking: bool = False
    ) -> str:
        """The prompt, up to where the model's answer begins.

        Texts of control tokens in messages and tools are broken with U+200B, so nobody can forge a turn.

        Raises:
            RequestError: there are no messages, or the template refuses them; its sentence is quoted.
            UnsupportedInput: tools, where the template would leave them out.
            BadCheckpoint: the template itself is wrong or does what a template may not do.
        """
        if not messages:
            raise RequestError("There are no messages.", "Ask something.")
        if tools and not self._tools:
            raise UnsupportedInput("This model was not taught to call tools.", "Leave the tools out.")
        forms = [self._form(message) for message in messages]
        if self._tool_responses:
            forms = _join_responses(forms)
        return self._write(forms, [self._guard.value(dict(tool)) for tool in tools], thinking)

    def _form(self, message: Message) -> dict[str, Any]:
        """The message as transformers hands it to templates."""
        form: dict[str, Any] = {"role": message.role, "content": self._content(message)}
        if message.tool_calls:
            form["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.role == "tool":
            form["name"] = self._guard.text(message.name)
            form["tool_call_id"] = self._guard.text(message.tool_call_id)
        return form

    def _call(self, call: ToolCall) -> dict[str, Any]:
        function = {"name": self._guard.text(call.name), "arguments": self._guard.value(dict(call.arguments))}
        return {"id": self._guard.text(call.id), "type": "function", "function": function}

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """A string where there is only text: some templates take no list in system and tool messages."""
        if all(isinstance(part, TextPart) for part in message.parts):
            return self._guard.text(message.text)
        # A template may put pictures before text; beside a video, whose pictures stand in text, order would break.
        inline = any(isinstance(part, VideoPart) for part in message.parts)
        return list(self._items(message, inline))

    def _items(self, message: Message, inline: bool) -> Iterator[dict[str, str]]:
        for part in message.parts:
            if isinstance(part, TextPart):
                yield {"type": "text", "text": self._guard.part(part.text)}
            elif isinstance(part, VideoPart):
                yield {"type": "text", "text": " ".join(f"{_clock(frame.seconds)} {IMAGE}" for frame in part.frames)}
            elif isinstance(part, ImagePart):
                yield {"type": "text", "text": IMAGE} if inline else {"type": "image"}
            elif isinstance(part, AudioPart):
                yield {"type": "audio"}


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def _join_responses(forms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Move each tool result into the assistant message before it, as ``tool_responses``."""
    joined: list[dict[str, Any]] = []
    for form in forms:
        if form["role"] != "tool":
            joined.append(form)
            continue
        asked = joined[-1] if joined else {}
        if "tool_calls" not in asked:
            raise RequestError("A tool result follows no tool call.", "Send the assistant message with the call first.")
        response = {"name": form["name"] or _called(asked, form["tool_call_id"]), "response": form["content"]}
        asked.setdefault("tool_responses", []).append(response)
    return joined


def _called(asked: Mapping[str, Any], number: str) -> str:
    """Name of the call with that id; for a result without one, the first call that has no result yet."""
    calls = asked["tool_calls"]
    by_id = [call for call in calls if call["id"] == number]
    left = calls[len(asked.get("tool_responses", ())) :]
    found = by_id or left
    if not found:
        raise RequestError("There are more tool results than tool calls.", "Send one result for each call.")
    return str(found[0]["function"]["name"])


class _Guard:
    """Breaks the texts of control tokens."""

    def __init__(self, special: Sequence[str]) -> None:
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        self._whole = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._beginnings = frozenset(token[:size] for token in longest_first for size in range(1, len(token)))
        self._longest = max(map(len, longest_first), default=0)

    def text(self, text: str) -> str:
        """Every whole token text broken after its first character."""
        return self._whole.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)

    def part(self, text: str) -> str:
        """Also a beginning of one at the end, which the next part of the message might complete."""
        text = self.text(text)
        stripped = text.rstrip()
        for size in range(min(self._longest, len(stripped)), 0, -1):
            if stripped[-size:] in self._beginnings:
                cut = len(stripped) - size + 1
                return text[:cut] + _BREAK + text[cut:]
        return text

    def value(self, value: Any) -> Any:
        """The same for every string inside JSON values."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, (list, tuple)) else value


def load_template(path: Path, tokenizer: Tokenizer, *, instruct: bool, architecture: str) -> Template:
    """The template of a checkpoint.

    The first of: ``chat_template.jinja``, ``chat_template`` in ``tokenizer_config.json``, the key
    ``tokenizer.chat_template`` of a GGUF file, our own turns for ``architecture``. A base model
    (``instruct`` False) continues text: ``<bos>`` and the texts, nothing else.

    Raises:
        BadCheckpoint: a template that cannot be compiled.
    """
    special = tuple(tokenizer.special)
    source = _source(path) if instruct else None
    if source is not None:
        writer, results_inside = _compiled(source, tokenizer, path), "tool_responses" in source
        return Template(writer, special, tool_responses=results_inside, tools="tools" in source)
    write = _OURS.get(architecture, plain_text) if instruct else plain_text
    return Template(write, special, tool_responses=write is gemma4_turns, tools=write is not plain_text)


def _source(path: Path) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    found = read_json(path / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several named ones
        found = {item["name"]: item["template"] for item in found}.get("default")
    if found is None and not (path / "tokenizer.json").is_file() and (weights := gguf_file(path)):
        found = read_head(weights).metadata.get("tokenizer.chat_template")
    return found


def _compiled(source: str, tokenizer: Tokenizer, path: Path) -> Writer:
    """A writer that runs Jinja source in a sandbox, with what transformers offers to templates."""
    try:
        template = _sandbox().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise BadCheckpoint(
            f"The chat template of {path} has an error in line {error.lineno}: {error}.", _FIX
        ) from error
    names = {f"{name}_token": f"<{name}>" if f"<{name}>" in tokenizer.special else "" for name in ("eos", "pad", "unk")}
    names["bos_token"] = tokenizer.bos_text

    def write(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
        try:
            return template.render(
                names,
                messages=messages,
                tools=tools or None,
                documents=None,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
        except _Refused as error:
            raise RequestError(f"The chat template refuses these messages: {error}", "Change the messages.") from error
        except _TEMPLATE_ERRORS as error:
            raise BadCheckpoint(f"The chat template of {path} fails: {type(error).__name__}: {error}", _FIX) from error

    return write


_FIX = "Fetch chat_template.jinja of the checkpoint again, or remove it to use the built-in turns."


class _Refused(jinja2.TemplateError):
    """The template called raise_exception."""


#: What code in a template can raise; the sandbox's own SecurityError is a TemplateError.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def _sandbox() -> ImmutableSandboxedEnvironment:
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _refuse
    sandbox.globals["strftime_now"] = _now
    return sandbox


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, this leaves <, > and & alone."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(sentence: str) -> None:
    raise _Refused(sentence)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
