"""The grammar of options: every one, where they end, and what a wrong one says."""

import pytest

from jupyter_gemma.errors import BadOption
from jupyter_gemma.notebook.options import FLAGS, Options, from_keywords, help_lines, parse
from jupyter_gemma.types import Sampling


@pytest.mark.parametrize(
    ("text", "options", "prompt"),
    [
        ("why?", Options(), "why?"),
        ("", Options(), ""),
        ("  why?  ", Options(), "why?  "),
        ("-w df why?", Options(attach="df"), "why?"),
        ("--with df,fig why?", Options(attach="df,fig"), "why?"),
        ("--with=df why?", Options(attach="df"), "why?"),
        ('-w df["a b"],f(x, y) why?', Options(attach='df["a b"],f(x, y)'), "why?"),
        ("-w a -w b why?", Options(attach="a,b"), "why?"),
        ("-w df", Options(attach="df"), ""),
        ("-o answer why?", Options(out="answer"), "why?"),
        ("--out answer why?", Options(out="answer"), "why?"),
        ("-m gemma3-270m Once", Options(model="gemma3-270m"), "Once"),
        ("--model 'a b' Once", Options(model="a b"), "Once"),
        ("-t 0 why?", Options(temperature=0.0), "why?"),
        ("--temperature=0.7 why?", Options(temperature=0.7), "why?"),
        ("--max-tokens 5 why?", Options(max_tokens=5), "why?"),
        ("--seed -3 why?", Options(seed=-3), "why?"),
        ("--think why?", Options(think=True), "why?"),
        ("--think --no-think why?", Options(think=False), "why?"),
        ('--system "Answer in French." why?', Options(system="Answer in French."), "why?"),
        ("--system=Briefly. why?", Options(system="Briefly."), "why?"),
        ("--image-tokens 280 why?", Options(image_tokens=280), "why?"),
        ("--rows 0 why?", Options(rows=0), "why?"),
        ("--new why?", Options(new=True), "why?"),
        ("--no-history why?", Options(history=False), "why?"),
        ("-t 0 --seed 1\n-w df\nwhy?", Options(temperature=0.0, seed=1, attach="df"), "why?"),
        ("why -t 0?", Options(), "why -t 0?"),
        ("what's -5?", Options(), "what's -5?"),
        ("-5 degrees", Options(), "-5 degrees"),
        ("- first\n- second", Options(), "- first\n- second"),
        ("-- -t is what?", Options(), " -t is what?"),
        ("---\ntitle", Options(), "---\ntitle"),
        ("-t 0 /explain fig", Options(temperature=0.0), "/explain fig"),
    ],
)
def test_grammar(text, options, prompt):
    assert parse(text) == (options, prompt)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--modell x why?", r"no option --modell. Did you mean --model\?"),
        ("--thinking why?", r"Did you mean --think\?"),
        ("-z why?", "no option -z"),
        ("-x why?", "after --"),
        ("--seed", "--seed needs a value"),
        ("--seed soon why?", "--seed cannot be 'soon'"),
        ("--max-tokens 0 why?", "max-tokens cannot be 0. It must be a whole number above 0"),
        ("--max-tokens 1.5 why?", "cannot be '1.5'"),
        ("-t hot why?", "--temperature cannot be 'hot'"),
        ("-t -1 why?", "temperature cannot be -1.0"),
        ("-t nan why?", "temperature cannot be nan"),
        ("--image-tokens 100 why?", "one of 70, 140, 280, 560, 1120"),
        ("--rows -1 why?", "rows cannot be -1"),
        ("-o 1x why?", "a variable name"),
        ("-o class why?", "a variable name"),
        ("--system 'open why?", "--system needs a value"),
    ],
)
def test_wrong_options_say_what_is_right(text, words):
    with pytest.raises(BadOption, match=words):
        parse(text)


def test_every_flag_is_in_the_help_and_sets_a_field():
    lines = "\n".join(help_lines())
    for flag in FLAGS:
        assert all(name in lines for name in flag.names)
        assert hasattr(Options(), flag.field)


def test_keywords():
    assert from_keywords({"seed": 1, "temperature": 0}) == Options(seed=1, temperature=0)
    with pytest.raises(BadOption, match=r"'max_token'. Did you mean max_tokens"):
        from_keywords({"max_token": 1})
    with pytest.raises(BadOption, match="no option 'out'"):
        from_keywords({"out": "x"})


def test_sampling():
    assert Options(temperature=0, seed=1, max_tokens=9).sampling == Sampling(temperature=0, seed=1, max_tokens=9)
