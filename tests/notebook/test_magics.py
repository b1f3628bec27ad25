"""The magic in a shell that raises: what is sent, what comes back, what is kept."""

import numpy as np
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

from jupyter_gemma.errors import BadAudio, RequestError, ServerLost
from jupyter_gemma.notebook.answer import Answer, Stopped
from jupyter_gemma.types import AudioPart, Chunk, ImagePart, Message, Sampling, TextPart


@pytest.fixture
def sent(client):
    """The parts of the last question."""
    return lambda: client.requests[-1].messages[-1].parts


def test_line_and_cell(run, client, sent):
    answer = run("%gemma why?")
    assert isinstance(answer, Answer)
    assert (answer.text, str(answer), answer.finish, answer.model) == ("It rises.", "It rises.", "stop", "demo")
    assert sent() == answer.parts == (TextPart("why?"),)
    run("%%gemma Look:\nline one\n  line two")
    assert sent() == (TextPart("Look:\nline one\n  line two"),)
    run("%%gemma\nfirst line empty")
    assert sent() == (TextPart("first line empty"),)


def test_options_reach_the_request(run, client):
    run('%gemma -m big -t 0 --seed 3 --max-tokens 9 --think --system "Briefly." --image-tokens 140 why?')
    request = client.requests[-1]
    assert request.model == "big"
    assert request.sampling == Sampling(temperature=0, seed=3, max_tokens=9)
    assert request.thinking
    assert request.image_tokens == 140
    assert request.messages[0] == Message("system", (TextPart("Briefly."),))


@pytest.mark.parametrize("cell", ["%gemma why?", "x = %gemma why? ", "if 1:\n    %gemma why?", "d['x'] = %gemma why?"])
def test_a_question_is_no_request_for_help(run, sent, shell, cell, client):
    shell.user_ns["d"] = {}
    run(cell)
    assert sent() == (TextPart("why?"),)


def test_question_marks_elsewhere_stay_ipythons(run, client, capsys, tmp_path):
    run("%gemma?")
    assert client.requests == []
    run(f"%%writefile {tmp_path / 'x.py'}\n%gemma why?\n")
    assert (tmp_path / "x.py").read_text() == "%gemma why?\n"
    run("%%time\n%gemma why?")
    assert client.requests[-1].messages[-1].text == "why?"


@pytest.mark.parametrize(
    "prompt",
    [
        "what's this",
        "why?",
        "{unknown}?",
        "is it $x$? ??",
        "a ( b",
        'say "hi',
        "it is {",
        "tab\\t $x$ %d !ls ?",
        "x -w df",
    ],
)
def test_prompts_arrive_as_typed(run, sent, prompt):
    run(f"%gemma {prompt}")
    assert sent() == (TextPart(prompt),)


def test_objects_stand_where_they_are_named(run, shell, sent):
    shell.user_ns.update(pixels=np.zeros((20, 30, 3), np.uint8), tone=np.zeros(1600), n=3)
    run("%gemma See {pixels} and {(tone, 16000)}, {n} times; {nope} {'a': 1}")
    assert [type(part) for part in sent()] == [TextPart, ImagePart, TextPart, AudioPart, TextPart]
    assert [part.text for part in sent()[::2]] == ["See", "and", ", 3 times; {nope} {'a': 1}"]


def test_with_comes_before_the_prompt_and_knows_the_card(run, shell, sent):
    import pandas

    shell.user_ns["df"] = pandas.DataFrame({"age": [1, 3], "city": ["a", "b"]})
    run("%gemma -w df How many rows are there?")
    table = "rows 2\nage: mean 2 min 1 max 3\ncity: text 2 unique"
    assert sent() == (TextPart(f"{table}\nHow many rows are there?"),)
    answer = run("%gemma -m big --rows 1 -w df How many?")
    assert "Table of 2 rows and 2 columns" in sent()[0].text
    assert answer.sent == ("df (table 2 × 2, 1 rows of cells)",)


def test_out_and_semicolon(run, shell, capsys):
    assert run("%gemma -o kept why?;") is None
    assert shell.user_ns["kept"].text == "It rises."
    assert capsys.readouterr().out == ""
    assert run("kept = %gemma why?\nkept.usage.image_tokens") == 48


def test_local_scope_in_functions_and_loops(run, sent, client):
    run("def ask(thing):\n    inner = thing * 2\n    %gemma What is {inner}?\nask(21)")
    assert sent() == (TextPart("What is 42?"),)
    run("for word in ['a', 'b']:\n    %gemma Say {word}")
    assert [request.messages[-1].text for request in client.requests[-2:]] == ["Say a", "Say b"]


def test_names_of_ipython_are_no_placeholders(run, sent):
    run("%gemma {open} {exit} {In} {get_ipython}")
    assert sent() == (TextPart("{open} {exit} {In} {get_ipython}"),)
    run("open = 5")
    run("%gemma {open}")
    assert sent() == (TextPart("5"),)


def test_out_values_are_placeholders(run, sent, shell):
    run("40 + 2")
    run("%gemma {_}, {Out[" + str(shell.execution_count - 1) + "]}")
    assert sent() == (TextPart("42, 42"),)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%gemma", "There is no prompt"),
        ("%gemma --sed 1 why?", r"Did you mean --seed\?"),
        ("%gemma -w dff why?", "no variable 'dff'"),
        ("%gemma /explan fig", r"Did you mean /explain\?"),
        ("%gemma /nonsense", "There are /explain, /transcribe"),
        ("%gemma /transcribe", "needs a clip"),
        ("%gemma /explain a b", "no Python expression"),
        ("%gemma /explain", "No cell has shown"),
    ],
)
def test_mistakes_of_the_user(run, client, cell, words):
    with pytest.raises(UsageError, match=words):
        run(cell)
    assert client.requests == []


def test_expression_that_raises(run, client, shell):
    shell.user_ns["n"] = 0
    with pytest.raises(RequestError, match=r"\{1/n\} raised ZeroDivisionError"):
        run("%gemma say {1/n}")
    assert client.requests == []


def test_errors_of_the_client_are_exceptions_and_keep_what_came(run, client, capsys, magics):
    client.chunks = [Chunk(text="Half an"), ServerLost("The model server was lost.", "Ask again.")]
    with pytest.raises(ServerLost):
        run("%gemma why?")
    assert "Half an" in capsys.readouterr().out
    assert magics.session.conversation.turns == []
    error = ServerLost("The model server was lost.", "Ask again.")
    assert error._render_traceback_() == ["ServerLost: The model server was lost. Ask again."]


def test_interrupt_stops_the_server_and_keeps_the_part(run, client, shell, capsys, magics):
    client.chunks = [Chunk(text="Half an"), KeyboardInterrupt()]
    with pytest.raises(Stopped) as caught:
        run("%gemma -o kept why?")
    assert client.closed_early == 1
    assert (caught.value.answer.text, caught.value.answer.finish) == ("Half an", "cancelled")
    assert shell.user_ns["kept"] == caught.value.answer
    assert "stopped" in capsys.readouterr().out
    assert magics.session.conversation.turns == []


def test_interrupt_while_showing_closes_the_stream(magics, client):
    class Interrupting:
        def update(self, answer, status=""):
            if answer.text:
                raise KeyboardInterrupt

        def finish(self, answer):
            return answer

    from jupyter_gemma.notebook.options import Options

    with pytest.raises(Stopped) as caught:
        magics.session.asker.ask([("", "why?")], Options(), Interrupting())
    assert caught.value.answer.text == "It "
    assert client.closed_early == 1


def test_an_interrupt_ends_the_loop(run, client):
    client.chunks = [KeyboardInterrupt()]
    with pytest.raises(Stopped):
        run("for i in range(3):\n    %gemma again {i}")
    assert len(client.requests) == 1


def test_conversation(run, client, magics):
    def roles():
        return [message.role for message in client.requests[-1].messages]

    run("%gemma -m big one")
    run("%gemma -m big two")
    assert roles() == ["user", "assistant", "user"]
    assert client.requests[-1].messages[1].text == "It rises."
    run("%gemma -m big --no-history three")
    assert roles() == ["user"]
    run("%gemma -m big four")
    assert roles() == ["user", "assistant"] * 2 + ["user"]
    run("%gemma -m demo five")
    assert roles() == ["user"]
    run("%gemma -m base six")
    assert roles() == ["user"]
    run("%gemma -m big --new seven")
    assert roles() == ["user"]
    run("%gemma /reset")
    assert magics.session.conversation.turns == []


def test_explain_and_transcribe_say_the_words_of_the_card(run, shell, sent):
    shell.user_ns.update(pixels=np.zeros((20, 30, 3), np.uint8), clip=(np.zeros(1600), 16000))
    run("%gemma /explain pixels")
    assert [type(part) for part in sent()] == [ImagePart, TextPart]
    assert sent()[1].text == "Explain this plot."
    run("%gemma /explain {pixels}")
    assert sent()[1].text == "Explain this plot."
    run("%gemma -m big /explain pixels")
    assert "axes" in sent()[1].text
    run("%gemma /transcribe clip")
    assert [type(part) for part in sent()] == [AudioPart, TextPart]
    assert sent()[1].text == "Transcribe it."
    with pytest.raises(BadAudio, match="pixels is no clip"):
        run("%gemma /transcribe pixels")


def test_explain_takes_the_last_thing_shown(run, shell, sent, magics):
    import base64

    from IPython.core.formatters import format_display_data
    from PIL import Image

    shell.user_ns["image"] = Image.new("RGB", (8, 8))
    run("'words'")
    run("image")
    run("%gemma /explain")
    assert isinstance(sent()[0], ImagePart)
    png = format_display_data(Image.new("RGB", (9, 9)))[0]["image/png"]
    content = png if isinstance(png, str) else base64.b64encode(png).decode()
    message = {"content": {"data": {"image/png": content}}}
    assert magics.session.shown(message) is message
    answer = run("%gemma /explain")
    assert answer.sent[0].endswith("(picture 9 × 9)")


def test_explain_takes_the_figure_of_this_cell(run):
    import matplotlib as mpl

    mpl.use("Agg")
    source = (
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1), dpi=100)\nanswer = %gemma /explain\nplt.close()"
    )
    run(source)
    assert run("answer.sent") == ("the current figure (picture 200 × 100)",)


def test_status_and_help(run, capsys):
    run("%gemma /status")
    assert "state: ready" in capsys.readouterr().out
    run("%gemma /help")
    text = capsys.readouterr().out
    assert "--image-tokens" in text
    assert "/transcribe" in text


def test_a_wrong_setting_is_an_error(shell, monkeypatch):
    from jupyter_gemma.errors import BadOption
    from jupyter_gemma.notebook.api import Gemma

    monkeypatch.setenv("JUPYTER_GEMMA_MODLE", "x")
    with pytest.raises(BadOption, match="Did you mean model"):
        Gemma()("why?")


def test_load_and_unload_put_back_what_was_there(shell: InteractiveShell):
    def before(line):
        return "before"

    shell.register_magic_function(before, "line", "gemma")
    shell.run_line_magic("load_ext", "jupyter_gemma")
    assert shell.find_line_magic("gemma") is not before
    assert shell.find_cell_magic("gemma") is not None
    shell.run_line_magic("unload_ext", "jupyter_gemma")
    assert shell.find_line_magic("gemma") is before
    assert shell.find_cell_magic("gemma") is None
