"""Synthetic speech: espeak-ng's voices, and what a room and a microphone do to it.

The library ``libespeak-ng.so.1`` (Debian: ``apt-get install libespeak-ng1``) is used through ctypes, which takes some
4 ms for each clip; starting its program would take longer than speaking.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.random import Generator
from numpy.typing import NDArray

from jupyter_gemma.errors import UnsupportedInput

RATE = 16000
LIBRARY = "libespeak-ng.so.1"
ACCENTS = (
    *("gmw/en", "gmw/en-US", "gmw/en-GB-scotland", "gmw/en-GB-x-gbclan", "gmw/en-GB-x-gbcwmd"),
    *("gmw/en-US-nyc", "gmw/en-029"),
)
SPEAKERS = (
    *("Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky"),
    *("Lee", "Marco", "Mario", "Michael", "Mike", "Mr", "Nguyen", "RicishayMax", "RicishayMax3", "Storm", "Tweaky"),
    *("adam", "anika", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "edward2"),
    *("f1", "f2", "f3", "f5", "gustave", "iven", "iven2", "iven3", "kaukovalta", "klatt", "klatt2", "klatt4", "m1"),
    *("m2", "m4", "m5", "m6", "m7", "m8", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy"),
    *("rob", "robert", "sandro", "shelby", "steph", "steph2", "travis", "victor"),
)
# Never heard in training.
NEW_ACCENT = "gmw/en-GB-x-rp"
NEW_SPEAKERS = (
    *("f4", "m3", "linda", "john", "zac", "klatt3", "steph3", "marcelo", "iven4", "grandma", "grandpa"),
    "RicishayMax2",
)
LOUDEST = 0.7
# Below this a sample counts as silence around the words.
SILENCE = 0.003

Clip = NDArray[np.float32]


@dataclass(frozen=True)
class Voice:
    """Who speaks and how: espeak-ng's name, words a minute, pitch and its range (0 to 99), pause in 10 ms units."""

    name: str
    speed: int
    pitch: int
    range: int
    gap: int


def known_voice(rng: Generator) -> Voice:
    """A voice of the training set."""
    speaker = f"+{_pick(rng, SPEAKERS)}" if rng.random() < 0.93 else ""
    return _voice(rng, _pick(rng, ACCENTS) + speaker)


def new_voice(rng: Generator) -> Voice:
    """A voice that training never hears: a new speaker, now and then with an accent that is new too."""
    if rng.random() < 0.25:
        return _voice(rng, f"{NEW_ACCENT}+{_pick(rng, (*SPEAKERS, *NEW_SPEAKERS))}")
    return _voice(rng, f"{_pick(rng, ACCENTS)}+{_pick(rng, NEW_SPEAKERS)}")


def _voice(rng: Generator, name: str) -> Voice:
    gap = int(rng.choice((0, 0, 0, 1, 3)))
    return Voice(name, int(rng.integers(120, 231)), int(rng.integers(20, 81)), int(rng.integers(20, 81)), gap)


def _pick(rng: Generator, names: tuple[str, ...]) -> str:
    return names[rng.integers(len(names))]


class Speaker:
    """espeak-ng. One for a process: the library has one state.

    Raises:
        UnsupportedInput: the library is not installed.
    """

    _SYNCHRONOUS, _DO_NOT_EXIT = 2, 1 << 15
    _SPEED, _PITCH, _RANGE, _GAP = 1, 3, 4, 7
    _UTF8, _BY_CHARACTER = 1, 1

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise UnsupportedInput(f"There is no {LIBRARY}: {error}.", "apt-get install libespeak-ng1") from error
        self._rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, None, self._DO_NOT_EXIT)
        self._pieces: list[NDArray[np.int16]] = []
        receive = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._receive = receive(self._keep)  # the library does not keep it alive
        self._library.espeak_SetSynthCallback(self._receive)

    def _keep(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: int) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: Voice) -> Clip:
        """``text`` at 16 kHz, float32 in [-0.7, 0.7], without the silence around it.

        Raises:
            UnsupportedInput: there is no such voice, or it says nothing.
        """
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise UnsupportedInput(f"espeak-ng has no voice {voice.name!r}.", "apt-get install espeak-ng-data")
        for parameter, value in (
            (self._SPEED, voice.speed),
            (self._PITCH, voice.pitch),
            (self._RANGE, voice.range),
            (self._GAP, voice.gap),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._pieces.clear()
        data = text.encode() + b"\0"
        self._library.espeak_Synth(data, len(data), 0, self._BY_CHARACTER, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        spoken = np.concatenate(self._pieces or [np.zeros(1, np.int16)]).astype(np.float32) / 32768
        return _trimmed(soxr.resample(spoken, self._rate, RATE), text)


def _trimmed(clip: Clip, text: str) -> Clip:
    """Peak 0.7; 20 ms are left before the words and 40 ms after them."""
    loud = np.flatnonzero(np.abs(clip) > SILENCE)
    if not len(loud):
        raise UnsupportedInput(f"espeak-ng says nothing for {text!r}.")
    clip = clip[max(loud[0] - RATE // 50, 0) : loud[-1] + RATE // 25]
    return (clip * (LOUDEST / np.abs(clip).max())).astype(np.float32)


def recorded(clip: Clip, rng: Generator) -> Clip:
    """``clip`` as a microphone may have it: silence around, a room, gain, noise, and a small offset."""
    before, after = rng.integers(0, RATE // 5), rng.integers(RATE // 25, RATE // 10)
    heard = np.pad(clip, (before, after))
    if rng.random() < 0.25:
        heard = in_room(heard, rng, seconds=rng.uniform(0.05, 0.3))
    heard = heard * 10 ** (rng.uniform(-18, 0) / 20)
    noise_level = 0.1 * 10 ** (-float(rng.choice((60, 50, 40, 30, 25, 20))) / 20) + 1e-4
    heard = heard + noise_level * rng.standard_normal(len(heard))
    if rng.random() < 0.2:
        heard = heard + rng.uniform(-0.01, 0.01)
    return np.clip(heard, -1, 1).astype(np.float32)


def in_room(clip: Clip, rng: Generator, seconds: float) -> Clip:
    """``clip`` with an echo that dies away by 60 dB in ``seconds``: noise under an exponential, as in a real room."""
    times = np.arange(int(seconds * RATE)) / RATE
    echo = rng.standard_normal(len(times)) * 10 ** (-3 * times / seconds)
    # The echo has a tenth to a half of the direct sound's energy.
    echo *= np.sqrt(rng.uniform(0.1, 0.5) / np.sum(echo**2))
    echo[0] = 1.0
    wet = np.convolve(clip, echo)[: len(clip)]
    return (wet * (np.abs(clip).max() / np.abs(wet).max())).astype(np.float32)
