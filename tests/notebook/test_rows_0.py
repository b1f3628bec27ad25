"""``--rows 0``: no value of a table occurs in the request, whatever holds the table and whatever model is asked."""

import numpy as np
import pandas as pd
import pytest

from jupyter_gemma.types import TextPart

WORDS = ["Zanzibar", "Quito", "Xiamen", "Ypres", "Quux", "Wroclaw", "Vaduz", "Ulm", "Tromso", "Sfax", "Riga", "Pau"]


def secret(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(rows)
    return pd.DataFrame(
        {
            "whole": rng.integers(10**6, 10**7, rows),
            "real": rng.normal(size=rows) * 1000 + 5000,
            "constant": np.full(rows, 271.8281),
            "word": [WORDS[at % len(WORDS)] for at in range(rows)],
            "kind": pd.Categorical([WORDS[at % 3] for at in range(rows)]),
            "when": pd.Timestamp("1987-03-04") + pd.to_timedelta(rng.integers(0, 99, rows), unit="D"),
            "sum": rng.integers(10**6, 10**7, rows).cumsum(),
        }
    )


def values_of(frame: pd.DataFrame) -> set[str]:
    """Every cell as it could be written."""
    found: set[str] = set()
    for name in frame.columns:
        for value in frame[name]:
            found.add(str(value))
            if isinstance(value, float):
                found |= {f"{value:.6g}", f"{value:.2f}"}
            if isinstance(value, pd.Timestamp):
                found |= {str(value.date()), str(value.year)}
    return found


def holders(frame: pd.DataFrame) -> dict[str, object]:
    import dask.dataframe
    import duckdb
    import polars
    import pyarrow

    plain = frame.astype({"kind": str})
    return {
        "pandas": frame,
        "indexed": frame.set_index("word", drop=False),
        "series": frame["real"],
        "groups": frame.groupby("word"),
        "polars": polars.from_pandas(plain),
        "lazy": polars.from_pandas(plain).lazy(),
        "arrow": pyarrow.Table.from_pandas(plain),
        "duckdb": duckdb.from_df(plain),
        "dask": dask.dataframe.from_pandas(plain, npartitions=2),
        "matrix": frame[["real", "sum"]].to_numpy(),
    }


@pytest.mark.parametrize("model", ["demo", "big"])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_no_value_leaves_the_table(run, shell, client, model, rows):
    frame = secret(rows)
    values = values_of(frame)
    for name, holder in holders(frame).items():
        shell.user_ns["df"] = holder
        answer = run(f"%gemma -m {model} --rows 0 --no-history -w df Which columns are there?")
        sent = "".join(part.text for message in client.requests[-1].messages for part in message.parts)
        assert all(isinstance(part, TextPart) for message in client.requests[-1].messages for part in message.parts)
        assert [value for value in values if value in sent] == [], (name, sent)
        assert "0 rows of cells" in answer.sent[0] or name == "matrix"


def test_the_setting_rules_every_question(run, shell, client, magics):
    shell.user_ns["df"] = secret(40)
    run("%config GemmaMagics.rows = 0")
    run("%gemma -m big {df} What is this?")
    assert "Zanzibar" not in client.requests[-1].messages[-1].text
    run("%gemma -m big --rows 1 {df} What is this?")
    assert "Zanzibar" in client.requests[-1].messages[-1].text


def test_a_follow_up_does_not_bring_them_back(run, shell, client):
    shell.user_ns["df"] = secret(40)
    run("%gemma -m big --rows 0 {df} What is this?")
    run("%gemma -m big And why?")
    assert len(client.requests[-1].messages) == 3
    assert not any("Zanzibar" in message.text for message in client.requests[-1].messages)
