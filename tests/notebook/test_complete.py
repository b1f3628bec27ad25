"""What Tab offers after ``%gemma``."""

import pytest
from IPython.core.completer import provisionalcompleter

from jupyter_gemma.notebook.complete import matches

NAMES = ["df", "dates", "fig"]


@pytest.mark.parametrize(
    ("text", "typed", "expected"),
    [
        ("%gemma --im", "--im", ["--image-tokens"]),
        ("%gemma -t 0 --no", "--no", ["--no-cache", "--no-history", "--no-think"]),
        ("%%gemma --sch", "--sch", ["--schema"]),
        ("x = %gemma --se", "--se", ["--seed"]),
        ("%gemma -f j", "j", ["json"]),
        ("%gemma --image-tokens 1", "1", ["1120", "140"]),
        ("%gemma -m ", "", ["big", "demo"]),
        ("%gemma -w d", "d", ["dates", "df"]),
        ("%gemma -w df,f", "f", ["fig"]),
        ("%gemma what is {d", "d", ["dates", "df"]),
        ("%%gemma\nwhat is {fi", "fi", ["fig"]),
        ("%gemma /ex", "/ex", ["/explain"]),
        ("%gemma /explain p", "p", ["plot"]),
        ("%gemma /explain f", "f", ["fig", "frame"]),
        ("%gemma /transcribe clip --s", "--s", ["--segments", "--srt"]),
    ],
)
def test_offers(text, typed, expected):
    assert matches(text, NAMES, ["demo", "big"]) == (typed, expected)


@pytest.mark.parametrize("text", ["df.he", "%time df", "%gemmas --x", "%gemma what is d", "print('%gemma --x"])
def test_nothing_elsewhere(text):
    assert matches(text, NAMES) is None


def test_in_the_shell(shell, magics, client):
    shell.user_ns["speeds"] = [1]
    with provisionalcompleter():
        found = list(shell.Completer.completions("%gemma {spe", len("%gemma {spe")))
        assert [each.text for each in found] == ["speeds"]
        found = list(shell.Completer.completions("%gemma -m b", len("%gemma -m b")))
        assert {each.text for each in found} == {"base", "big"}
