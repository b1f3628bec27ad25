"""The options of ``%gemma``: read from the beginning of a prompt, or given as keywords."""

from __future__ import annotations

import difflib
import keyword
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from jupyter_gemma.errors import BadOption
from jupyter_gemma.types import Sampling

IMAGE_TOKENS = (70, 140, 280, 560, 1120)
FORMATS = ("markdown", "text", "code", "json", "html", "table")
# Python hands in objects and takes answers by itself, and keeps no conversation.
MAGIC_ONLY = ("attach", "out", "new", "history", "show_prompt")


@dataclass(frozen=True, slots=True)
class Options:
    """How a question is to be answered. None means: as the model's own settings say.

    ``attach`` and ``out`` are Python source: the objects to send before the prompt and the variable for the answer.
    ``schema`` is a type, a JSON schema, or on the magic's line the source of one. ``tools`` are functions that the
    model may call, at most ``max_calls`` times.
    """

    attach: str = ""
    out: str = ""
    format: str = "markdown"
    schema: Any = None
    model: str = ""
    adapter: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    think: bool = False
    system: str = ""
    image_tokens: int | None = None
    rows: int = 5
    new: bool = False
    history: bool = True
    show_prompt: bool = False
    cache: bool = True
    keep: bool = False
    tools: tuple[Callable[..., Any], ...] = ()
    max_calls: int = 8

    def __post_init__(self) -> None:
        """Check what has bounds.

        Raises:
            BadOption: naming the option, its value and its bounds.
        """
        checks = {
            "temperature": (self.temperature is None or 0 <= self.temperature <= 10, "a number from 0 to 10"),
            "max_tokens": (self.max_tokens is None or self.max_tokens > 0, "a whole number above 0"),
            "image_tokens": (self.image_tokens in (None, *IMAGE_TOKENS), f"one of {', '.join(map(str, IMAGE_TOKENS))}"),
            "format": (self.format in FORMATS, f"one of {', '.join(FORMATS)}"),
            "max_calls": (self.max_calls > 0, "a whole number above 0"),
            "tools": (not callable(self.tools), "a list of functions"),
            "rows": (self.rows >= 0, "a whole number, 0 for no cell values"),
            "out": (not self.out or _is_variable(self.out), "a variable name"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise BadOption(f"{name.replace('_', '-')} cannot be {getattr(self, name)}.", f"It must be {wanted}.")

    @property
    def sampling(self) -> Sampling:
        """The options that choose tokens."""
        return Sampling(temperature=self.temperature, seed=self.seed, max_tokens=self.max_tokens)


def _is_variable(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


@dataclass(frozen=True, slots=True)
class Flag:
    """One option as typed: its names, the field it sets, how its text is read (None: it takes no value).

    ``choices`` are offered when its value is completed.
    """

    names: tuple[str, ...]
    field: str
    help: str
    read: Callable[[str], Any] | None = None
    value: Any = True
    choices: tuple[str, ...] = ()


def _unquoted(text: str) -> str:
    return " ".join(shlex.split(text))


FLAGS = (
    Flag(("-w", "--with"), "attach", "objects to send before the prompt: a,b,c", str),
    Flag(("-o", "--out"), "out", "variable to put the answer into", str),
    Flag(("-f", "--format"), "format", f"form of the answer: {', '.join(FORMATS)}", str, choices=FORMATS),
    Flag(("--schema",), "schema", 'a model, type or JSON schema the answer fits: list[int], Literal["a","b"]', str),
    Flag(("-m", "--model"), "model", "model to ask", _unquoted),
    Flag(("--adapter",), "adapter", "what the model was taught: name of an adapter; none: the plain model", _unquoted),
    Flag(("-t", "--temperature"), "temperature", "0 takes the likeliest token", float),
    Flag(("--max-tokens",), "max_tokens", "length of the answer at most", int),
    Flag(("--seed",), "seed", "makes a sampled answer repeatable", int),
    Flag(("--think",), "think", "think before answering"),
    Flag(("--no-think",), "think", "answer at once", value=False),
    Flag(("--system",), "system", 'how to answer: --system "In French."', _unquoted),
    Flag(
        ("--image-tokens",),
        "image_tokens",
        "tokens a picture gets: 70, 140, 280, 560 or 1120",
        int,
        choices=tuple(map(str, IMAGE_TOKENS)),
    ),
    Flag(("--rows",), "rows", "rows of a table sent cell by cell; 0: none", int),
    Flag(("--new",), "new", "begin a new conversation"),
    Flag(("--no-history",), "history", "ask apart from the conversation", value=False),
    Flag(("--show-prompt",), "show_prompt", "show the exact prompt and do not ask"),
    Flag(("--no-cache",), "cache", "ask anew, also what was answered before", value=False),
    Flag(("--keep",), "keep", "save in the notebook all that is asked, tables and pictures too, to learn from it"),
)

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_OPTION = re.compile(r"(?P<name>--?[A-Za-z][\w-]*)(?P<equals>=)?")


def parse(text: str, defaults: Options = Options()) -> tuple[Options, str]:
    """Split ``text`` into its options, which stand first, and the prompt; ``--`` ends the options.

    What is not given is as in ``defaults``.

    Raises:
        BadOption: an unknown option (the nearest is named), or a missing or wrong value.
    """
    values: dict[str, Any] = {}
    rest = text.lstrip()
    while match := _OPTION.match(rest):
        flag = _flag(match["name"])
        rest = rest[match.end() :]
        if flag.read is None:
            value = flag.value
        else:
            value, rest = _value(flag, rest if match["equals"] else rest.lstrip())
        if flag.field == "attach" and "attach" in values:
            value = f"{values['attach']},{value}"
        values[flag.field] = value
        rest = rest.lstrip()
    return replace(defaults, **values), rest.removeprefix("--") if re.match(r"--(\s|$)", rest) else rest


def _flag(name: str) -> Flag:
    by_name = {each: flag for flag in FLAGS for each in flag.names}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(by_name)}."
    raise BadOption(f"There is no option {name}.", f"{hint} A prompt that begins with a dash comes after --.")


def _value(flag: Flag, rest: str) -> tuple[Any, str]:
    text = rest[: _value_end(rest)]
    name = flag.names[-1]
    if not text or flag.read is None:
        raise BadOption(f"{name} needs a value.", f"{name}: {flag.help}.")
    try:
        return flag.read(text), rest[len(text) :]
    except ValueError as error:
        raise BadOption(f"{name} cannot be {text!r}.", f"{name}: {flag.help}.") from error


def _value_end(rest: str) -> int:
    """Where an option's value ends: at a blank outside quotes and brackets, ``df["a b"],f(x, y)``; 0 if it does not."""
    open_: list[str] = []
    for at, sign in enumerate(rest):
        if open_ and sign == open_[-1]:
            open_.pop()
        elif open_ and open_[-1] in "\"'":
            continue
        elif sign in "\"'":
            open_.append(sign)
        elif sign in _CLOSING:
            open_.append(_CLOSING[sign])
        elif sign.isspace() and not open_:
            return at
    return 0 if open_ else len(rest)


def from_keywords(keywords: Mapping[str, Any]) -> Options:
    """Options by field name, as the Python API takes them.

    Raises:
        BadOption: a name that no option has; the nearest is named.
    """
    names = [field.name for field in fields(Options) if field.name not in MAGIC_ONLY]
    for name in keywords:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise BadOption(
                f"There is no option {name!r}.",
                f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}.",
            )
    return Options(**keywords)


def help_lines() -> list[str]:
    """One line an option."""
    return [f"{', '.join(flag.names)}{'' if flag.read is None else ' VALUE'}: {flag.help}" for flag in FLAGS]
