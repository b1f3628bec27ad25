"""gemma("…", df): the same way as the magic, from Python."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from jupyter_gemma.errors import BadAudio, BadOption
from jupyter_gemma.notebook.answer import Stopped
from jupyter_gemma.notebook.api import Gemma
from jupyter_gemma.types import AudioPart, Chunk, ImagePart, TextPart


@pytest.fixture
def gemma(client) -> Gemma:
    return Gemma(client)


def test_call_sends_objects_before_the_prompt(gemma, client):
    frame = pd.DataFrame({"a": [1]})
    answer = gemma("Compare {a}.", frame, np.zeros((20, 20), np.uint8), temperature=0, seed=1)
    assert [type(part) for part in answer.parts] == [TextPart, ImagePart, TextPart]
    assert answer.parts[0].text == "rows 1\na: mean 1 min 1 max 1"
    assert answer.parts[2].text == "Compare {a}."
    assert client.requests[0].sampling.seed == 1
    assert answer.sent == ("DataFrame (table 1 × 1, figures of 1 columns)", "ndarray (picture 20 × 20)")


def test_calls_are_no_conversation(gemma, client):
    gemma("one", model="big")
    gemma("two", model="big")
    assert len(client.requests[-1].messages) == 1


def test_unknown_option(gemma):
    with pytest.raises(BadOption, match="Did you mean temperature"):
        gemma("why?", temprature=1)


def test_stream_and_leaving_it_early(gemma, client):
    assert list(gemma.stream("why?")) == ["It ", "rises."]
    stream = gemma.stream("why?")
    next(stream)
    stream.close()
    assert client.closed_early == 1


def test_explain_and_transcribe(gemma):
    assert gemma.explain(np.zeros((20, 20), np.uint8)).parts[1].text == "Explain this plot."
    assert "Explain this:" in gemma.explain(pd.DataFrame({"a": [1]})).parts[0].text
    tone = np.zeros(1600)
    for answer in (gemma.transcribe(tone, rate=16000), gemma.transcribe((tone, 16000))):
        assert isinstance(answer.parts[0], AudioPart)
    with pytest.raises(BadAudio, match="ndarray is no clip"):
        gemma.transcribe(tone)


def test_interrupt(gemma, client):
    client.chunks = [Chunk(text="Half"), KeyboardInterrupt()]
    with pytest.raises(Stopped) as caught:
        gemma("why?")
    assert caught.value.answer.text == "Half"


def test_default_model_is_the_settings_or_the_first(gemma, client):
    assert gemma("why?").model == "demo"
    client.settings.model = "big"
    assert gemma("why?").model == "big"
    assert gemma("why?", model="elsewhere").model == "elsewhere"


def test_the_package_attribute_is_light_and_one():
    code = (
        "import sys, jupyter_gemma; from jupyter_gemma import gemma; assert gemma is jupyter_gemma.gemma; "
        "heavy = 'torch transformers numba librosa pandas numpy matplotlib httpx PIL IPython'.split(); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_attribute_of_the_package():
    import jupyter_gemma

    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        jupyter_gemma.nope  # noqa: B018
