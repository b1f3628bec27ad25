"""Clips: arrays, sound files and ``IPython.display.Audio`` as bytes of a sound file.

A file passes as it is; an array becomes 16-bit WAV by the standard library's ``wave``. Decoding and resampling are
the engine's work, so nothing heavy loads here.
"""

from __future__ import annotations

import io
import math
import numbers
import wave
from typing import Any

from jupyter_gemma.errors import BadAudio
from jupyter_gemma.notebook.items import Item, Limits, read_file
from jupyter_gemma.types import AudioPart

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".opus", ".aiff", ".aif"}
RATES = (1_000, 384_000)
MAX_CHANNELS = 8
# A larger mean, as a part of the peak, is a fault of the recording; a smaller one may be a cut period.
MAX_OFFSET = 0.02


def is_clip(value: tuple[Any, ...]) -> bool:
    """Whether ``value`` is ``(samples, rate)`` or ``(rate, samples)``."""
    return len(value) == 2 and _is_rate(value[0]) != _is_rate(value[1]) and any(map(_is_samples, value))


def _is_rate(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and RATES[0] <= float(value) <= RATES[1]


def _is_samples(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(sample, numbers.Real) for sample in value[:100])
    return getattr(value, "ndim", 0) in (1, 2) and hasattr(value, "dtype")


def from_samples(value: tuple[Any, ...], limits: Limits) -> Item:
    """``(samples, rate)`` in either order; samples of shape (n,), (n, channels) or (channels, n), rate in Hz."""
    samples, rate = value if _is_rate(value[1]) else reversed(value)
    return from_array(samples, rate, limits)


def from_array(samples: Any, rate: float, limits: Limits) -> Item:
    """Samples as a mono 16-bit WAV.

    Floats are -1..1 (louder ones are scaled to fit), integers use their type's whole range. A constant offset is
    removed.

    Raises:
        BadAudio: no samples, values that are not finite, a rate or length out of bounds.
    """
    import numpy

    if hasattr(samples, "detach"):  # a torch tensor, with or without gradients, on any device
        samples = samples.detach().cpu()
    mono = _mono(numpy, numpy.asarray(samples))
    _check(numpy, mono, rate, limits)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(round(rate))
        file.writeframes(numpy.round(_scaled(numpy, mono) * 32767).astype("<i2").tobytes())
    return Item((AudioPart(buffer.getvalue()),), f"clip {len(mono) / rate:.1f} s")


def _mono(numpy: Any, samples: Any) -> Any:
    """Shape (n,) of floats; integers are divided by their type's full scale."""
    if samples.ndim == 2 and min(samples.shape) <= MAX_CHANNELS:
        samples_by_channel = samples if samples.shape[0] <= samples.shape[1] else samples.T
    elif samples.ndim == 1:
        samples_by_channel = samples[None]
    else:
        raise BadAudio(
            f"An array of shape {samples.shape} is no clip.", "Its shape must be (n,), (n, channels) or (channels, n)."
        )
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind not in "iuf":
        raise BadAudio(f"Samples of type {samples.dtype} are no sound.", "Use floats of -1..1 or 16-bit integers.")
    mono = samples_by_channel.mean(axis=0, dtype=numpy.float64)
    if kind == "f":
        return mono
    if size == 8:  # numpy's own integers: what they hold tells the scale
        size = 2 if abs(samples).max(initial=0) < 2**15 else 4
    full = 2.0 ** (8 * size - 1)
    return (mono - full) / full if kind == "u" else mono / full


def _check(numpy: Any, mono: Any, rate: float, limits: Limits) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise BadAudio(f"{rate} Hz is no sampling rate.", f"It must lie between {RATES[0]} and {RATES[1]} Hz.")
    if not len(mono):
        raise BadAudio("The clip has no samples.", "Hand in one that has some.")
    if not numpy.isfinite(mono).all():
        raise BadAudio("The clip holds samples that are not finite.", "Replace them: numpy.nan_to_num(samples).")
    if len(mono) / rate > limits.seconds:
        raise BadAudio(
            f"The clip lasts {len(mono) / rate:.0f} s; at most {limits.seconds:.0f} s can be sent.",
            "Send a part of it.",
        )


def _scaled(numpy: Any, mono: Any) -> Any:
    if abs(mono.mean()) > MAX_OFFSET * numpy.abs(mono).max():
        mono = mono - mono.mean()
    peak = float(numpy.abs(mono).max())
    return mono / peak if peak > 1 else mono


def is_sound(data: bytes) -> bool:
    """Whether ``data`` begins as WAV, FLAC, Ogg, MP3, MP4 or AIFF files do."""
    if data[:4] in (b"RIFF", b"FORM"):
        return data[8:12] in (b"WAVE", b"AIFF", b"AIFC")
    # An MPEG frame: eleven set bits, then layer III (01), or no layer (00) for AAC.
    is_mp3 = len(data) > 1 and data[0] == 0xFF and (data[1] & 0xE6 == 0xE2 or data[1] & 0xF6 == 0xF0)
    return data.startswith((b"fLaC", b"OggS", b"ID3")) or data[4:8] == b"ftyp" or is_mp3


def from_bytes(data: bytes, limits: Limits) -> Item:
    """A sound file, passed on untouched.

    Raises:
        BadAudio: it is no sound file or too large.
    """
    if len(data) > limits.file_bytes:
        raise BadAudio(f"The clip has more than {limits.file_bytes} bytes.", "Send a part of it.")
    if not is_sound(data):
        raise BadAudio("These bytes are no sound file.", "Hand in WAV, FLAC, Ogg or MP3, or (samples, rate).")
    return Item((AudioPart(data),), note_of(data))


def from_path(path: Any, limits: Limits) -> Item:
    """A sound file on disk."""
    return from_bytes(read_file(path, limits, BadAudio, "Send a part of it."), limits)


def from_display(clip: Any, limits: Limits) -> Item:
    """An ``IPython.display.Audio``; one that is only a link is refused, nothing is fetched."""
    if not isinstance(clip.data, bytes):
        raise BadAudio("This Audio holds no sound, only a link.", "Save the clip and hand in its path.")
    return from_bytes(clip.data, limits)


def seconds_of(data: bytes) -> float:
    """The length of a WAV file; infinity where the standard library cannot tell."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            return float(file.getnframes() / file.getframerate())
    except (wave.Error, EOFError, ZeroDivisionError):
        return math.inf


def note_of(data: bytes) -> str:
    """ "clip S s", where the standard library can tell, else the size."""
    seconds = seconds_of(data)
    return f"clip {seconds:.1f} s" if math.isfinite(seconds) else f"clip, {len(data)} bytes"
