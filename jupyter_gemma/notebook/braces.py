r"""Which braces of a prompt are placeholders. Pure text; evaluates nothing.

``{expression}`` is a placeholder if it is one Python expression on one line that mentions a variable of the user and
names nothing unknown. Every other brace is text: JSON, sets, ``{a: b}``, ``\d{2}``, ``{unknown}``. So are braces in
LaTeX (``\frac{a}{b}``, ``$x_{i}$``) and in f-string literals, whatever they hold. Doubling escapes a placeholder as in
f-strings: ``{{df}}`` is the text ``{df}``, ``{{{df}}}`` is the value in braces; ``{{unknown}}`` stays as it is.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass

# Longer contents and more closing braces than these are code, not a placeholder.
MAX_LENGTH = 500
MAX_CLOSINGS = 16

_LITERAL_ZONES = re.compile(
    r"""
      \$\$.+?\$\$ | \\\(.+?\\\) | \\\[.+?\\\]                             # display and inline LaTeX
    | (?<![\\\w$])\$(?=[^\s$])[^$\n]*?(?<![\s\\])\$(?![\w{])              # $x$, but not $5 and $6, ${a} to ${b}
    | (?<![\w'"])(?:[fF][rR]?|[rR][fF])(?P<quote>\"{3}|'{3})[\s\S]*?(?P=quote)
    | (?<![\w'"])(?:[fF][rR]?|[rR][fF])(?P<mark>["'])[^\n]*?(?P=mark)     # f-string literals
    """,
    re.VERBOSE | re.DOTALL,
)
_LATEX_COMMAND = re.compile(r"\\[A-Za-z]{2,}\*?(?:\[[^\]\n]*\])?(?:[_^]?\{[^{}\n]*\})*[_^]?$|\^$")
# "key": value, key: value, x:.2f and lambda: x are no placeholders, whatever follows.
_PAIR = re.compile(r"""\s*("[^"\n]*"|'[^'\n]*'|\w+)\s*:""")
_NAME = re.compile(r"[^\W\d]\w*")
_NOT_AN_INSERT = (ast.Set, ast.Dict, ast.SetComp, ast.DictComp, ast.NamedExpr, ast.Await, ast.Yield)


@dataclass(frozen=True, slots=True)
class Hole:
    """A placeholder: the expression whose value goes here."""

    expression: str


def split(prompt: str, known: Set[str]) -> tuple[str | Hole, ...]:
    """Cut ``prompt`` into texts and holes, in their order; neighbouring texts are joined.

    Args:
        prompt: as typed.
        known: names of the user's variables (without the builtins).
    """
    pieces: list[str | Hole] = []
    for piece in _pieces(prompt, known):
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            pieces[-1] += piece
        elif piece:
            pieces.append(piece)
    return tuple(pieces)


def _pieces(prompt: str, known: Set[str]) -> Iterator[str | Hole]:
    zones = [match.span() for match in _LITERAL_ZONES.finditer(prompt)]
    done = 0
    for braces in re.finditer(r"\{+", prompt):
        start, inner = braces.span()
        if start < done or _is_literal(prompt, start, zones):
            continue
        content = _content(prompt, inner, known)
        if content is None:
            continue
        closing = inner + len(content)
        depth = min(inner - start, _run_length(prompt, closing))
        yield prompt[done : inner - depth] + "{" * (depth // 2)
        yield Hole(content.strip()) if depth % 2 else content
        yield "}" * (depth // 2)
        done = closing + depth
    yield prompt[done:]


def _is_literal(prompt: str, position: int, zones: list[tuple[int, int]]) -> bool:
    line_start = max(prompt.rfind("\n", 0, position) + 1, position - MAX_LENGTH)
    in_zone = any(start <= position < end for start, end in zones)
    return in_zone or _LATEX_COMMAND.search(prompt, line_start, position) is not None


def _run_length(prompt: str, position: int) -> int:
    return len(prompt) - position - len(prompt[position:].lstrip("}"))


def _content(prompt: str, start: int, known: Set[str]) -> str | None:
    """The text from ``start`` to the brace that closes a placeholder, or None if there is none."""
    line_end = prompt.find("\n", start)
    window = prompt[start : start + MAX_LENGTH if line_end < 0 else min(line_end, start + MAX_LENGTH)]
    if _PAIR.match(window):
        return None
    for closing in itertools.islice(re.finditer(r"\}", window), MAX_CLOSINGS):
        content = window[: closing.start()]
        if known.isdisjoint(_NAME.findall(content)):
            continue  # parsing is the slow part
        try:
            tree = ast.parse(content.strip(), mode="eval")
        except (SyntaxError, ValueError):  # ValueError: a null byte
            continue
        return content if _is_insert(tree, known) else None
    return None


def _is_insert(tree: ast.Expression, known: Set[str]) -> bool:
    if isinstance(tree.body, _NOT_AN_INSERT) or _is_bare_tuple(tree.body):
        return False
    names = free_names(tree)
    return any(name in known for name in names) and all(name in known or hasattr(builtins, name) for name in names)


def _is_bare_tuple(node: ast.expr) -> bool:
    """``x, y`` is a set in braces; ``(samples, rate)`` is a clip."""
    return isinstance(node, ast.Tuple) and all(element.col_offset == node.col_offset for element in node.elts[:1])


def free_names(tree: ast.AST) -> set[str]:
    """Names that ``tree`` reads and does not bind itself (comprehensions, lambda arguments)."""
    nodes = list(ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return read - bound - {node.arg for node in nodes if isinstance(node, ast.arg)}
