"""Clips: files untouched, arrays as 16-bit WAV, plain errors."""

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from IPython.display import Audio

from jupyter_gemma.errors import BadAudio
from jupyter_gemma.notebook import audio
from jupyter_gemma.notebook.context import item_of, parts_of
from jupyter_gemma.notebook.items import Limits
from jupyter_gemma.types import AudioPart

RATE = 16_000
TONE = np.sin(np.linspace(0, 200, RATE)) * 0.5


def samples(value, limits=None) -> tuple[np.ndarray, int]:
    (part,) = parts_of(value, limits)
    assert isinstance(part, AudioPart)
    with wave.open(io.BytesIO(part.data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767, file.getframerate()


@pytest.mark.parametrize("clip", [(TONE, RATE), (RATE, TONE), (TONE, float(RATE)), (TONE.tolist(), RATE)])
def test_either_order(clip):
    got, rate = samples(clip)
    assert rate == RATE
    assert np.abs(got - TONE).max() < 1e-4
    assert item_of(clip, Limits()).note == "clip 1.0 s"


@pytest.mark.parametrize(
    ("array", "tolerance"),
    [
        (TONE.astype(np.float32), 1e-4),
        ((TONE * 32767).astype(np.int16), 1e-3),
        ((TONE * 2147483647).astype(np.int32), 1e-3),
        ((TONE * 32767).astype(np.int64), 1e-3),
        (((TONE + 1) * 127.5).astype(np.uint8), 2e-2),
        (np.stack([TONE, TONE]), 1e-4),
        (np.stack([TONE, TONE, TONE], axis=1), 1e-4),
    ],
)
def test_types_and_channels(array, tolerance):
    before = array.copy()
    got, _ = samples((array, RATE))
    assert np.abs(got - TONE).max() < tolerance
    assert (array == before).all()


def test_loud_floats_are_scaled_to_fit():
    got, _ = samples((TONE * 10, RATE))
    assert 0.99 < np.abs(got).max() <= 1


def test_files_pass_untouched(tmp_path):
    (part,) = parts_of((TONE, RATE))
    path = tmp_path / "clip.wav"
    path.write_bytes(part.data)
    assert parts_of(path) == parts_of(part.data) == parts_of(bytearray(part.data)) == (part,)
    assert parts_of(Audio(filename=str(path))) == (part,)
    assert parts_of(b"fLaC" + bytes(100)) == (AudioPart(b"fLaC" + bytes(100)),)
    assert item_of(b"fLaC" + bytes(100), Limits()).note == "clip, 104 bytes"


def test_display_audio_made_from_samples():
    got, rate = samples(Audio(TONE, rate=RATE))
    assert (len(got), rate) == (RATE, RATE)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((np.array([]), RATE), "no samples"),
        ((np.array([0.0, np.nan]), RATE), "not finite"),
        ((np.zeros((20, 20)), RATE), r"shape \(20, 20\)"),
        ((np.array([1j]), RATE), "complex128"),
        ((np.zeros(RATE * 20), 1000), "lasts 320 s"),
        (Audio(url="http://127.0.0.1/x.wav"), "only a link"),
        (Path("/nowhere/x.wav"), "cannot be read"),
    ],
)
def test_bad_clips_say_so(bad, words):
    with pytest.raises(BadAudio, match=words) as caught:
        parts_of(bad, Limits(seconds=300))
    assert caught.value.fix


def test_a_text_file_is_no_clip(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_text("these are words")
    with pytest.raises(BadAudio, match="no sound file"):
        parts_of(path)


def test_a_rate_out_of_bounds():
    with pytest.raises(BadAudio, match="5 Hz is no sampling rate"):
        audio.from_array(TONE, 5, Limits())


def test_files_are_bounded(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(b"RIFF" + bytes(1000))
    with pytest.raises(BadAudio, match="more than 10 bytes"):
        parts_of(path, Limits(file_bytes=10))


@pytest.mark.parametrize("pair", [(1, 2), (16000, 22050), ("a", RATE), ([1, 2], [3, 4]), (RATE, True)])
def test_other_pairs_are_text(pair):
    (part,) = parts_of(pair)
    assert part.text == repr(pair)


def test_a_utf_16_text_is_no_mp3():
    assert not audio.is_sound("words".encode("utf-16"))
    assert not audio.is_sound(b"\xff\xd8\xff")
    assert audio.is_sound(b"\xff\xfb\x90\x00")
