"""What the JupyterLab panel reads from a kernel."""

import base64
import io
import math

import pandas as pd
from PIL import Image

from jupyter_gemma.notebook.panel import parts, variables


def test_variables_are_the_users_own_with_their_sizes() -> None:
    scope = {"df": pd.DataFrame({"a": [1, 2]}), "n": 3, "s": "text", "_hidden": 1, "In": [], "math": math, "f": len}
    assert variables(scope).data == [
        {"name": "df", "type": "DataFrame", "note": "2 × 1"},
        {"name": "n", "type": "int", "note": "3"},
        {"name": "s", "type": "str", "note": "4 items"},
    ]


def test_a_table_is_a_digest_within_its_rows() -> None:
    frame = pd.DataFrame({"city": ["Rome", "Oslo"], "rain": [60, 90]})
    (table,) = parts(frame, 1, "digest").data
    assert (table["kind"], table["note"]) == ("table", "table 2 × 2, 1 rows of cells")
    assert "Rome" in table["text"]
    (summed,) = parts(frame, 5, "columns").data
    assert summed["note"] == "table 2 × 2, figures of 2 columns"
    assert "rows 2" in summed["text"]


def test_a_picture_and_a_clip_are_files() -> None:
    (picture,) = parts(Image.new("RGB", (64, 48), "red"), 5, "digest").data
    assert (picture["kind"], picture["mime"]) == ("image", "image/png")
    assert Image.open(io.BytesIO(base64.b64decode(picture["data"]))).size == (64, 48)
    (clip,) = parts(([0.0, 0.5] * 800, 16000), 5, "digest").data
    assert (clip["kind"], clip["mime"]) == ("audio", "audio/wav")


def test_anything_else_is_text() -> None:
    assert parts({"a": 1}, 5, "digest").data == [{"kind": "text", "note": "dict", "text": "{'a': 1}"}]
