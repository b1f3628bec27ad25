"""The forms of an answer, ``--format``: what the model is told, and what holds it to that."""

from __future__ import annotations

from dataclasses import dataclass

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.options import Options
from jupyter_gemma.notebook.schemas import Schema, schema_of
from jupyter_gemma.types import Constraint

ROWS = {"type": "array", "items": {"type": "object"}}


@dataclass(frozen=True, slots=True)
class Format:
    """``words`` are added to the system message of models that understand them; ``constraint`` binds any model."""

    words: str = ""
    constraint: Constraint | None = None


FORMATS = {
    "markdown": Format(),
    "text": Format("Answer in plain text, without Markdown."),
    "code": Format("Answer with Python code only, in one block."),
    "json": Format("Answer with JSON only.", Constraint("json")),
    "html": Format("Answer with a fragment of HTML only, without scripts."),
    "table": Format(
        "Answer with a JSON list of objects only, one a row, all with the same keys.", Constraint("json_schema", ROWS)
    ),
}


def schema_for(options: Options) -> Schema | None:
    """The schema of ``options``.

    Raises:
        BadOption: it is none, or stands beside a format that it contradicts.
    """
    if options.schema is None:
        return None
    if options.format not in ("markdown", "json", "table"):
        raise BadOption(f"--format {options.format} cannot have a schema.", "Leave the format out.")
    return schema_of(options.schema)


def form_of(options: Options, schema: Schema | None) -> Format:
    """What to tell the model about the form of its answer, and what to hold it to."""
    return Format(schema.words, schema.constraint) if schema else FORMATS[options.format]


def shown_as(options: Options, schema: Schema | None) -> str:
    """The format that the answer is shown in: JSON, where a schema asks for it."""
    is_json = schema is not None and schema.constraint.kind != "choice" and options.format == "markdown"
    return "json" if is_json else options.format
