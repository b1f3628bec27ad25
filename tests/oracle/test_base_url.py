"""``base_url`` for real: our client asks llama-cpp-python's server, which has the 270M weights."""

import pytest

from jupyter_gemma.client import Client
from jupyter_gemma.errors import BadOption, UnsupportedInput
from jupyter_gemma.settings import load_settings
from jupyter_gemma.types import AudioPart, Constraint, ImagePart, Message, Part, Request, Sampling, TextPart

GREEDY = Sampling(temperature=0.0, max_tokens=6)


@pytest.fixture(scope="module")
def client(llama_server: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A client whose base_url is that server; it must start none of ours."""
    state = {"runtime_dir": str(tmp_path_factory.mktemp("runtime")), "start_server": False}
    return Client(load_settings({**state, "base_url": f"{llama_server}/v1"}, environ={}))


def ask(*parts: Part, **options: object) -> Request:
    return Request((Message("user", parts or (TextPart("The sun rises in the"),)),), sampling=GREEDY, **options)  # type: ignore[arg-type]


def test_a_question_is_answered(client: Client) -> None:
    first, second = (list(client.stream(ask())) for _ in range(2))
    text = "".join(chunk.text for chunk in first)
    assert text
    assert text == "".join(chunk.text for chunk in second)
    assert first[-1].finish in ("stop", "length")


def test_the_server_is_seen_as_another_one(client: Client) -> None:
    assert client.status()["state"] == "remote"
    assert len(client.models()) == 1
    for refused in (client.load, client.unload, client.stop_server):
        with pytest.raises(BadOption, match="base_url is set"):
            refused()


def test_what_it_lacks_is_found_out_though_it_says_nothing(client: Client) -> None:
    found = client.abilities()
    # It accepts pictures, sound, patterns and choices for a text model, and ignores them.
    absent = ("pictures", "sound", "regex", "choice", "image_tokens", "thinking")
    assert not any(found[name] for name in absent)
    assert found["json"]


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (ask(ImagePart(b"\x89PNG"), TextPart("See")), "takes no pictures"),
        (ask(AudioPart(b"RIFF"), TextPart("Hear")), "takes no sound"),
        (ask(constraint=Constraint("regex", "[0-9]+")), "to a pattern"),
        (ask(constraint=Constraint("choice", ["yes", "no"])), "to a choice"),
        (ask(image_tokens=70), "takes no image_tokens"),
    ],
    ids=["picture", "sound", "pattern", "choice", "budget"],
)
def test_what_it_lacks_is_refused_with_a_sentence(client: Client, request_: Request, named: str) -> None:
    with pytest.raises(UnsupportedInput, match=named) as caught:
        list(client.stream(request_))
    assert client.settings.base_url in caught.value.message
    assert "unset base_url" in caught.value.fix


def test_what_it_can_do_is_done(client: Client) -> None:
    text = "".join(chunk.text for chunk in client.stream(ask(constraint=Constraint("json"))))
    assert text.lstrip().startswith("{")


def test_it_writes_no_transcripts(client: Client) -> None:
    with pytest.raises(UnsupportedInput, match="writes no transcripts"):
        list(client.transcribe(ask(AudioPart(b"RIFF"))))
