"""Long recordings: where they are cut, what is joined, and how little of them is decoded at once."""

import io
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile

from jupyter_gemma.echo import EchoEngine
from jupyter_gemma.engine import transcribe as module
from jupyter_gemma.engine.transcribe import LONGEST, OVERLAP, RATE, drop_doubled, sound, transcribe, windows
from jupyter_gemma.errors import BadAudio, RequestError
from jupyter_gemma.types import AudioPart, Chunk, Message, ModelCard, Request, Segment, TextPart, Usage

CARD = ModelCard("hears", modalities=("text", "audio"))


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """Loud noise, never as quiet as a pause: float32 [n] at 16 kHz."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * RATE)).astype(np.float32)


def pause(seconds: float, level: float = 1e-3) -> np.ndarray:
    return (speech(seconds, 1) * level).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, **({"format": "WAV", "subtype": "FLOAT"} | options))
    return out.getvalue()


def ask(clip: bytes, text: str = "", **options: Any) -> Request:
    parts = (AudioPart(clip), *([TextPart(text)] if text else []))
    return Request((Message("user", parts),), **options)


class Listener(EchoEngine):
    """Says what it was scripted to say about each window, and keeps the windows."""

    def __init__(self, *said: str, card: ModelCard = CARD) -> None:
        super().__init__(card)
        self.said = list(said)
        self.heard: list[np.ndarray] = []

    def stream(self, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
        self.requests.append(request)
        samples, rate = soundfile.read(io.BytesIO(request.messages[0].parts[0].data), dtype="float32")
        assert rate == RATE
        self.heard.append(samples)
        if cancel.is_set():
            yield Chunk(finish="cancelled")
            return
        yield Chunk(text=self.said.pop(0) if self.said else "words")
        yield Chunk(finish="stop", usage=Usage(text_tokens=3, audio_tokens=10, completion_tokens=2))


def run(engine: Listener, request: Request) -> list[Chunk]:
    return list(transcribe(engine, request, threading.Event()))


def segments(chunks: list[Chunk]) -> list[Segment]:
    return [chunk.segment for chunk in chunks if chunk.segment]


# -- cutting ---


def test_a_clip_is_cut_in_its_pauses() -> None:
    clip = np.concatenate([speech(8), pause(1), speech(10), pause(0.8), speech(7)])
    found = list(windows(encoded(clip)))
    assert [window.doubled for window in found] == [False] * 3
    expected = [(0, 8), (9, 19), (19.8, 26.8)]
    assert np.abs(np.array([window.voiced for window in found]) - expected).max() < 0.05
    assert np.array_equal(np.concatenate([window.samples for window in found]), clip)


def test_short_pauses_and_early_ones_do_not_cut() -> None:
    clip = np.concatenate([speech(2), pause(1), speech(8), pause(0.2), speech(3)])
    assert len(list(windows(encoded(clip)))) == 1
    assert len(list(windows(encoded(clip), shortest=320))) == 2  # the pause after 2 s


def test_speech_without_a_pause_is_cut_with_an_overlap() -> None:
    clip = speech(95)
    found = list(windows(encoded(clip)))
    assert [window.doubled for window in found] == [False, *[True] * (len(found) - 1)]
    end = 0
    for window in found:
        assert len(window.samples) <= LONGEST
        start = round(window.start * RATE)
        assert start == (end - OVERLAP if window.doubled else 0)
        assert np.array_equal(window.samples, clip[start : start + len(window.samples)])
        end = start + len(window.samples)
    assert end == len(clip)


@pytest.mark.parametrize("seed", range(8))
def test_every_sound_is_in_a_window(seed: int) -> None:
    random = np.random.default_rng(seed)
    pieces = [piece for n in range(6) for piece in (speech(random.uniform(0.1, 40), n), pause(random.uniform(0.1, 2)))]
    clip = np.concatenate(pieces)
    covered = np.zeros(len(clip), dtype=bool)
    for window in windows(encoded(clip)):
        assert len(window.samples) <= LONGEST
        start = round(window.start * RATE)
        covered[start : start + len(window.samples)] = True
    assert not (np.abs(clip) > 0.01)[~covered].any()


def test_silence_has_no_words() -> None:
    engine = Listener()
    chunks = run(engine, ask(encoded(np.zeros(40 * RATE, dtype=np.float32))))
    assert engine.heard == []
    assert chunks == [Chunk(finish="stop", usage=Usage())]


# -- asking ---


def test_each_window_is_asked_in_the_words_of_the_card() -> None:
    card = ModelCard("hears", prompts={"transcribe": "Write down:"})
    engine = Listener("one", "two", card=card)
    clip = encoded(np.concatenate([speech(6), pause(1), speech(6)]))
    chunks = run(engine, ask(clip, "Names: Ada", client="n1", model="hears"))
    assert [found.text for found in segments(chunks)] == ["one", "two"]
    assert chunks[0].progress is not None
    assert (chunks[0].progress.done, chunks[0].progress.total) == (0, 13)
    assert chunks[-1].usage == Usage(text_tokens=6, audio_tokens=20, completion_tokens=4)
    assert {request.messages[0].text for request in engine.requests} == {"Write down: Names: Ada"}
    assert {(request.client, request.model) for request in engine.requests} == {("n1", "hears")}
    assert all(50 < (request.sampling.max_tokens or 0) < 200 for request in engine.requests)


def test_a_model_of_single_utterances_gets_its_own_words_and_single_utterances() -> None:
    engine = Listener(card=ModelCard("demo", turns=False, extras=False))
    run(engine, ask(encoded(np.concatenate([speech(1), pause(0.6), speech(1)])), "Names: Ada"))
    assert len(engine.heard) == 2
    assert {request.messages[0].text for request in engine.requests} == {"Transcribe the audio."}


def test_words_that_two_windows_share_come_once() -> None:
    engine = Listener("the end of the first wind", "first window and more", "and more of it")
    chunks = run(engine, ask(encoded(speech(65))))
    assert " ".join(found.text for found in segments(chunks)) == "the end of the first window and more of it"


def test_words_repeated_after_a_pause_stay() -> None:
    engine = Listener("No.", "No.")
    chunks = run(engine, ask(encoded(np.concatenate([speech(6), pause(1), speech(6)]))))
    assert [found.text for found in segments(chunks)] == ["No.", "No."]


def test_cancelling_ends_before_the_next_window() -> None:
    engine = Listener()
    cancel = threading.Event()
    answer = transcribe(engine, ask(encoded(speech(95))), cancel)
    next(chunk for chunk in answer if chunk.segment)
    cancel.set()
    assert list(answer)[-1].finish == "cancelled"
    assert len(engine.heard) == 3


@pytest.mark.parametrize("count", [0, 2])
def test_there_must_be_one_clip(count: int) -> None:
    request = Request((Message("user", (TextPart("a"), *[AudioPart(b"RIFF")] * count)),))
    with pytest.raises(RequestError, match=f"{count} clips"):
        run(Listener(), request)


# -- joining ---


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("one two three", "two three four", "one two three four"),
        ("One two, THREE.", "three four", "One two, THREE. four"),
        ("one two thr", "two three four", "one two three four"),
        ("one two three", "wo three four", "one two three four"),
        ("one two three", "four five", "one two three four five"),
        ("a b", "", "a b"),
        ("", "a b", "a b"),
        ("ja ja ja", "ja ja nein", "ja ja ja nein"),
        ("- -", "- a", "- - a"),
    ],
)
def test_joining(before: str, after: str, joined: str) -> None:
    assert " ".join(filter(None, drop_doubled(before, after))) == joined


# -- decoding ---


@pytest.mark.parametrize("form", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_formats_and_rates(form: tuple[str, str], rate: int) -> None:
    seconds = np.arange(5 * rate) / rate
    tone = (0.5 * np.sin(2 * np.pi * 440 * seconds)).astype(np.float32)
    clip = encoded(np.stack((tone, tone), axis=1), rate, format=form[0], subtype=form[1])
    decoded = np.concatenate(list(sound(clip)))
    assert abs(len(decoded) - 5 * RATE) < 0.1 * RATE
    spectrum = np.abs(np.fft.rfft(decoded[: 4 * RATE]))
    assert spectrum.argmax() / 4 == pytest.approx(440, abs=1)


def test_a_long_clip_is_never_in_memory_as_a_whole() -> None:
    block = (pause(60) * 100).astype(np.float32)
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", RATE, 1, format="FLAC") as file:
        for _ in range(20):
            file.write(np.concatenate([block[: 8 * RATE], np.zeros(52 * RATE, dtype=np.float32)]))
    clip = out.getvalue()  # 20 minutes; 77 MB as float32
    tracemalloc.start()
    try:
        count = sum(len(window.samples) > 0 for window in windows(clip))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count >= 20
    assert peak < 30e6


@pytest.mark.parametrize(
    ("clip", "named"),
    [
        (b"", "not a sound file"),
        (b"RIFF", "not a sound file"),
        (encoded(np.zeros(0, dtype=np.float32)), "no samples"),
        (encoded(np.full(100, np.nan, dtype=np.float32)), "NaN"),
        (encoded(np.zeros((10, 100), dtype=np.float32)), "100 channels"),
    ],
    ids=["nothing", "a head", "empty", "NaN", "channels"],
)
def test_what_cannot_be_heard_is_named(clip: bytes, named: str) -> None:
    with pytest.raises(BadAudio, match=named):
        run(Listener(), ask(clip))


def test_no_other_program_sees_a_playlist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audioread.audio_open", lambda *arguments: pytest.fail("another program reads the clip"))
    with pytest.raises(BadAudio, match="not a sound file"):
        run(Listener(), ask(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"))


def test_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SECONDS", 7.2)
    with pytest.raises(BadAudio, match="longer than"):
        run(Listener(), ask(encoded(speech(8))))
