"""Python functions that a model may call: how they are declared, called, and how their results go back."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.exchange import ToolRun
from jupyter_gemma.types import Chunk, Message, Request, TextPart, ToolCall

Function = Callable[..., Any]
MAX_RESULT = 8_000


def declaration(function: Function) -> dict[str, Any]:
    """OpenAI's declaration of ``function``: its name, its docstring, the JSON schema of its arguments.

    Raises:
        BadOption: its arguments have types that JSON cannot express.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    name = getattr(function, "__name__", "")
    try:
        parameters = TypeAdapter(cast("Any", function)).json_schema()
    except (PydanticUserError, TypeError, NameError) as error:
        raise BadOption(f"{function!r} cannot be a tool.", "Use a function with type hints such as str.") from error
    about = {"name": name, "description": inspect.getdoc(function) or "", "parameters": parameters}
    return {"type": "function", "function": about}


def rounds(
    stream: Callable[[Request], Generator[Chunk, None, None]],
    request: Request,
    functions: Sequence[Function],
    max_calls: int,
) -> Iterator[Chunk | ToolRun]:
    """The answer with the calls on its way; after ``max_calls`` the model must answer without more."""
    by_name = {function.__name__: function for function in functions}
    left = max_calls
    while True:
        said: list[str] = []
        calls: list[ToolCall] = []
        with closing(stream(request)) as chunks:
            for chunk in chunks:
                said.append(chunk.text)
                calls += [chunk.tool_call] if chunk.tool_call else []
                yield replace(chunk, finish=None) if calls and functions else chunk
        if not calls or not functions:
            return
        runs = [run(by_name, call) for call in calls[:left]]
        yield from runs
        left -= len(calls)
        request = _answered(request, "".join(said), calls[: len(runs)], runs, may_call=left > 0)


def run(functions: Mapping[str, Function], call: ToolCall) -> ToolRun:
    """Call a tool; what it raises goes to the model as words, an interrupt ends everything."""
    from pydantic import validate_call

    started = time.perf_counter()
    try:
        result = _text(validate_call(functions[call.name])(**call.arguments))
    except KeyError:
        result = f"There is no tool {call.name!r}. There are {', '.join(functions)}."
    except Exception as error:  # noqa: BLE001 whatever a user's function raises
        result = f"{type(error).__name__}: {error}"
    return ToolRun(call.name, call.arguments, result[:MAX_RESULT], time.perf_counter() - started)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def _answered(
    request: Request, said: str, calls: Sequence[ToolCall], runs: Sequence[ToolRun], may_call: bool
) -> Request:
    asked = Message("assistant", (TextPart(said),) if said else (), tool_calls=tuple(calls))
    results = [
        Message("tool", (TextPart(done.result),), tool_call_id=call.id, name=call.name)
        for call, done in zip(calls, runs, strict=True)
    ]
    return replace(request, messages=(*request.messages, asked, *results), tools=request.tools if may_call else ())
