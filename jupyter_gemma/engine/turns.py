"""Our own turns, for checkpoints without a chat template: Gemma 4, Gemma 3, and plain text for base models.

Each function takes messages in transformers' form (text already guarded), tool declarations in OpenAI's form
and the thinking switch. Gemma 4's form is documented at https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jupyter_gemma.errors import RequestError

IMAGE = "<|image|>"
AUDIO = "<|audio|>"

_ROLES = {"assistant": "model", "user": "user", "system": "system"}
_MEDIA = {"image": IMAGE, "audio": AUDIO}


def plain_text(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
    """``<bos>`` and the texts one after the other: a base model knows no turns, tools or thoughts."""
    return "<bos>" + "".join(_flat(message["content"]) for message in messages)


def gemma3_turns(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
    """Gemma 3: no system turn, so system text goes before the first user turn's text. No tools, no thoughts."""
    if tools:
        raise RequestError("Gemma 3 was not taught to call tools.", "Leave the tools out, or use a Gemma 4 model.")
    system = "".join(_flat(message["content"]).strip() + "\n\n" for message in messages if message["role"] == "system")
    turns = ""
    for message in messages:
        if message["role"] == "system":
            continue
        lead, system = (system, "") if message["role"] == "user" else ("", system)
        turns += f"<start_of_turn>{_role(message)}\n{lead}{_flat(message['content']).strip()}<end_of_turn>\n"
    return f"<bos>{turns}<start_of_turn>model\n"


def gemma4_turns(messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool) -> str:
    """Gemma 4: a system turn with the thinking switch and the tools, then the turns.

    Thinking off opens the answer with an empty thought channel. Tool calls and results stay in one model turn;
    after a result the model goes on in that turn.
    """
    text = "<bos>"
    system, rest = _leading_system(messages)
    if system or tools or thinking:
        switch = "<|think|>\n" if thinking else ""
        text += f"<|turn>system\n{switch}{system}{''.join(map(_declaration, tools))}<turn|>\n"
    open_turn = False
    for message in rest:
        if not (open_turn and message["role"] == "assistant"):
            text += f"<|turn>{_role(message)}\n"
        open_turn = bool(message.get("tool_responses")) and not message["content"]
        text += _calls(message) + _flat(message["content"]).strip() + ("" if open_turn else "<turn|>\n")
    if open_turn:
        return text
    return f"{text}<|turn>model\n" + ("" if thinking else "<|channel>thought\n<channel|>")


def _leading_system(messages: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    if messages[0]["role"] != "system":
        return "", messages
    return _flat(messages[0]["content"]).strip(), messages[1:]


def _role(message: Mapping[str, Any]) -> str:
    role = message["role"]
    if role not in _ROLES:
        raise RequestError(f"This model takes no messages of the role {role!r}.", "Send user and assistant messages.")
    return _ROLES[role]


def _flat(content: str | list[dict[str, str]]) -> str:
    """Content as text, each picture and clip as its placeholder."""
    if isinstance(content, str):
        return content
    return "".join(item.get("text", "") or _MEDIA.get(item["type"], "") for item in content)


def _calls(message: Mapping[str, Any]) -> str:
    text = ""
    for call in message.get("tool_calls", ()):
        text += f"<|tool_call>call:{call['function']['name']}{write_value(call['function']['arguments'])}<tool_call|>"
    for result in message.get("tool_responses", ()):
        value = write_value({"value": result["response"]})
        text += f"<|tool_response>response:{result['name']}{value}<tool_response|>"
    return text


def _declaration(tool: Mapping[str, Any]) -> str:
    function = tool.get("function", {})
    if not function.get("name"):
        raise RequestError("A tool has no function name.", 'Declare tools as {"type": "function", "function": {...}}.')
    shown = {"description": function.get("description", "")}
    if function.get("parameters"):
        shown["parameters"] = _upper_types(function["parameters"])
    return f"<|tool>declaration:{function['name']}{write_value(shown)}<tool|>"


def _upper_types(schema: Any) -> Any:
    """JSON schema with the names of types in capitals, as Gemma 4 was taught. ``properties`` may name a "type"."""
    if not isinstance(schema, Mapping):
        return schema
    changed = {key: _upper_types(value) for key, value in schema.items()}
    if isinstance(schema.get("type"), str):
        changed["type"] = schema["type"].upper()
    return changed


def write_value(value: Any) -> str:
    """A JSON value in Gemma 4's form: bare keys sorted without regard to case, strings in ``<|"|>``."""
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{write_value(value[key])}" for key in sorted(value, key=str.lower)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write_value, value)) + "]"
    return json.dumps(value)
