"""Which braces are placeholders: the table in braces.txt, and prompts that must come through untouched."""

from pathlib import Path

import pytest

from jupyter_gemma.notebook.braces import Hole, split

KNOWN = {"df", "fig", "x", "y", "i", "n", "d", "name", "clip", "price", "low", "high", "_", "Out"}
LINES = Path(__file__).with_name("braces.txt").read_text(encoding="utf-8").splitlines()
CASES = [line.split("  =>  ") for line in LINES if line and not line.startswith("#")]


def shown(prompt: str) -> str:
    """The prompt with every placeholder as «expression»."""
    return "".join(f"«{piece.expression}»" if isinstance(piece, Hole) else piece for piece in split(prompt, KNOWN))


@pytest.mark.parametrize(("prompt", "expected"), [(case[0], case[-1]) for case in CASES])
def test_table(prompt, expected):
    assert shown(prompt.replace("⏎", "\n")) == expected.replace("⏎", "\n")


def test_every_prompt_of_the_table_through_the_magic(run, shell, client, monkeypatch):
    monkeypatch.setattr("jupyter_gemma.notebook.context.evaluate", lambda source, scope: f"«{source}»")
    shell.user_ns.update(dict.fromkeys(KNOWN - {"Out", "_"}, 0))
    for case in CASES:
        prompt, expected = (text.replace("⏎", "\n") for text in (case[0], case[-1]))
        run(f"%%gemma -m big --no-history --no-cache\n: {prompt}")
        assert client.requests[-1].messages[-1].text == f": {expected}".strip()


def test_table_is_large_enough_and_has_no_doubles():
    assert len(CASES) >= 200
    assert len({case[0] for case in CASES}) == len(CASES)


def test_nothing_is_a_placeholder_without_variables():
    for case in CASES:
        prompt = case[0]
        assert split(prompt, set()) == ((prompt,) if prompt else ())


def test_a_large_json_document_is_fast_and_untouched():
    text = '{"a": [' + ", ".join('{"x": {"df": 1}}' for _ in range(5000)) + "]}"
    assert split(text, KNOWN) == (text,)


def test_neighbouring_texts_are_one():
    assert split("a {{df}} b {nope} c", KNOWN) == ("a {df} b {nope} c",)
