"""Frames as text: the demo model's exact form, the bounded digest, nothing changed, fast."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from jupyter_gemma.notebook.context import item_of, parts_of
from jupyter_gemma.notebook.items import Limits

COLUMNS = Limits(table_form="columns")


def text(value, limits=None) -> str:
    (part,) = parts_of(value, limits)
    return part.text


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"age": [20, 31, 42], "city": ["Rome", "Oslo", "Rome"], "score": [1.5, None, 2.75]})


def test_columns_form_is_the_one_the_demo_model_knows(frame):
    assert text(frame, COLUMNS) == "rows 3\nage: mean 31 min 20 max 42\ncity: text 2 unique\nscore: mean 2 min 2 max 3"


def test_columns_form_of_odd_columns():
    odd = pd.DataFrame(
        {"none": [None, None], "flag": [True, False], "day": pd.to_datetime(["2024-01-01", "2024-01-02"])}
    )
    assert text(odd, COLUMNS) == "rows 2\nnone: text 0 unique\nflag: text 2 unique\nday: text 2 unique"


def test_digest_holds_shape_types_nulls_ranges_labels_and_rows(frame):
    digest = text(frame)
    for words in (
        "Table of 3 rows and 3 columns",
        "age (int64): 20 to 42, mean 31, std 11, quartiles 25.5 31 36.5",
        "2 unique, most often Rome (2), Oslo (1)",
        "score (float64): 1 missing, 1.5 to 2.75",
        "First 3 of 3 rows:\nage | city | score\n20 | Rome | 1.5\n31 | Oslo | nan",
    ):
        assert words in digest


def test_note_says_the_shape_and_the_rows_sent(frame):
    assert item_of(frame, Limits(rows=2)).note == "table 3 × 3, 2 rows of cells"
    assert item_of(frame, COLUMNS).note == "table 3 × 3, figures of 3 columns"
    assert item_of(frame, replace(COLUMNS, rows=0)).note == "table 3 × 3, 0 rows of cells"


def test_note_counts_what_the_budget_let_through():
    wide = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 40)))
    item = item_of(wide, Limits(rows=50))
    sent = item.parts[0].text.partition(" of 100 rows:")[0].rpartition("First ")[2]
    assert 0 < int(sent) < 50
    assert item.note == f"table 100 × 40, {sent} rows of cells"
    assert item_of(wide, replace(COLUMNS, columns=7)).note == "table 100 × 40, figures of 7 columns"


@pytest.mark.parametrize("form", ["digest", "columns"])
def test_rows_0_sends_no_cell_value(form):
    secret = pd.DataFrame({"a": [918273, 5.5, 645546], "b": ["Zanzibar", "Quito", "Quito"]})
    secret["when"] = pd.to_datetime(["2017-03-04", "2019-09-08", "2018-01-01"])
    sent = text(secret, Limits(rows=0, table_form=form))
    for value in ("918273", "5.5", "645546", "Zanzibar", "Quito", "2017", "2019"):
        assert value not in sent


@pytest.mark.parametrize("form", ["digest", "columns"])
def test_every_odd_frame_has_a_bounded_text(form):
    odd = [
        pd.DataFrame(),
        pd.DataFrame({"a": []}),
        pd.DataFrame([[1, 2]], columns=["same", "same"]),
        pd.DataFrame(np.zeros((3, 5000))),
        pd.DataFrame({"ünï": ["🎉" * 500]}),
        pd.DataFrame({"nested": [[1], {"a": 2}, [1]]}),
        pd.DataFrame({"category": pd.Categorical(["x", "y", "x"])}),
        pd.DataFrame({"zone": pd.date_range("2024", periods=3, tz="Europe/Rome"), "gap": pd.to_timedelta([1, 2, 3])}),
        pd.DataFrame({"complex": [1 + 2j], "infinite": [float("inf")]}),
        pd.DataFrame(np.ones((2, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])),
        pd.DataFrame({"a": [1, 2]}, index=pd.Index([3, 4], name="key")),
        pd.DataFrame({"nullable": pd.array([1, None], dtype="Int64"), "text": pd.array(["a", None], dtype="string")}),
        pd.Series([1, 2, 3], name="alone"),
        pd.Series(["a", "b"]),
    ]
    for value in odd:
        assert 0 < len(text(value, replace(Limits(), table_form=form))) < 8000, value


@pytest.mark.parametrize("form", ["digest", "columns"])
def test_a_million_rows_take_under_200_ms_and_stay_as_they_are(form):
    rng = np.random.default_rng(0)
    size = 1_000_000
    large = pd.DataFrame(
        {
            "value": rng.normal(size=size),
            "count": rng.integers(0, 1000, size),
            "city": np.array(["Rome", "Oslo", "Lima"])[rng.integers(0, 3, size)],
            "day": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 1000, size), unit="D"),
        }
    )
    before = large.iloc[::1000].copy(deep=True)
    limits = replace(Limits(), table_form=form)
    took = []
    for _ in range(3):
        started = time.perf_counter()
        sent = text(large, limits)
        took.append(time.perf_counter() - started)
    assert "1000000" in sent
    assert min(took) < 0.2, took
    pd.testing.assert_frame_equal(large.iloc[::1000], before)


def test_a_thing_that_converts_to_pandas(frame):
    class Other:
        def to_pandas(self):
            return frame

    assert text(Other()) == text(frame)


def test_a_thing_whose_conversion_needs_a_missing_library_is_text():
    class Other:
        def to_pandas(self):
            raise ImportError("pyarrow")

        def __str__(self):
            return "other table"

    assert text(Other()) == "other table"
