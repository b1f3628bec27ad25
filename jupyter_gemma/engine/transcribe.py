"""Long recordings to text: cut at pauses into windows that the model can hear, asked one by one, and joined.

A window ends at the first clear pause after some seconds, and has at most 30 s. Where nobody pauses for so long, two
windows share a second of sound, and the words that were heard twice are dropped.
"""

from __future__ import annotations

import io
import re
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from jupyter_gemma.engine.media import check_container, unreadable
from jupyter_gemma.errors import BadAudio, RequestError
from jupyter_gemma.types import (
    AudioPart,
    Chunk,
    Engine,
    FinishReason,
    Message,
    ModelCard,
    Progress,
    Request,
    Segment,
    TextPart,
    Usage,
)

RATE = 16000
LONGEST = 30 * RATE
SHORTEST = 5 * RATE  # a model hears better with some context
OVERLAP = RATE  # samples that two windows share where no pause was found
FRAME = RATE // 50
PAUSE = 25  # frames: 0.5 s
# A pause has at most this share of the loudness of speech around it; what is quieter than QUIET is silence anyway.
PAUSE_SHARE, QUIET = 0.1, 10**-3.5
MAX_SECONDS = 8 * 3600.0
MAX_CHANNELS = 64
BLOCK = 1 << 16
TOKENS_PER_SECOND, SPARE_TOKENS = 15, 50  # far more than anyone says: it ends a model that repeats itself
MOST_DOUBLED = 12
WORDS = "Transcribe the audio."

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A stretch of sound.

    ``samples``: float32 ``[n]``, mono at :data:`RATE`, from ``start`` seconds on. ``voiced``: seconds from the
    beginning of the clip at which the first and the last sound is. ``doubled``: its beginning is the previous one's
    end.
    """

    start: float
    samples: Samples
    voiced: tuple[float, float]
    doubled: bool = False


def transcribe(engine: Engine, request: Request, cancel: threading.Event) -> Iterator[Chunk]:
    """See :meth:`jupyter_gemma.types.Engine.transcribe`: answers with the help of ``engine.stream``.

    Raises:
        RequestError: the request holds no clip, or several.
        BadAudio: the clip cannot be read, or is longer than :data:`MAX_SECONDS`.
    """
    parts = [part for message in request.messages for part in message.parts]
    clips = [part for part in parts if isinstance(part, AudioPart)]
    if len(clips) != 1:
        raise RequestError(f"There are {len(clips)} clips to transcribe.", "Send one.")
    context = " ".join(part.text for part in parts if isinstance(part, TextPart))
    usage, finish = Usage(), "stop"
    pending: Segment | None = None
    total = int(_seconds(clips[0].data))
    # A model that was trained on single questions was trained on single utterances.
    for window in windows(clips[0].data, SHORTEST if engine.card.turns else FRAME):
        yield Chunk(progress=Progress("transcribing", int(window.start), total))
        text, used, finish = _hear(engine, _question(engine.card, request, window, context), cancel)
        usage = _add(usage, used)
        if finish == "cancelled":
            break
        if pending and window.doubled:
            before, text = drop_doubled(pending.text, text)
            pending = replace(pending, text=before)
        if pending and pending.text:
            yield Chunk(segment=pending)
        pending = Segment(*window.voiced, text)
    if pending and pending.text:
        yield Chunk(segment=pending)
    yield Chunk(finish="cancelled" if finish == "cancelled" else "stop", usage=usage)


def _question(card: ModelCard, request: Request, window: Window, context: str) -> Request:
    words = card.prompts.get("transcribe", WORDS)
    if context and card.extras:
        words = f"{words} {context}"
    sound = io.BytesIO()
    soundfile.write(sound, window.samples, RATE, format="WAV", subtype="FLOAT")
    most = int(len(window.samples) / RATE * TOKENS_PER_SECOND) + SPARE_TOKENS
    sampling = replace(request.sampling, max_tokens=min(most, request.sampling.max_tokens or most))
    message = Message("user", (AudioPart(sound.getvalue()), TextPart(words)))
    return replace(request, messages=(message,), sampling=sampling)


def _hear(engine: Engine, request: Request, cancel: threading.Event) -> tuple[str, Usage, FinishReason]:
    text, usage = "", Usage()
    finish: FinishReason = "stop"
    for chunk in engine.stream(request, cancel):
        text += chunk.text
        usage, finish = chunk.usage or usage, chunk.finish or finish
    return text.strip(), usage, finish


def _add(first: Usage, second: Usage) -> Usage:
    return Usage(*(getattr(first, name) + getattr(second, name) for name in Usage.__slots__))


# -- cutting -----------------------------------------------------------------------------------------------------


def windows(clip: bytes, shortest: int = SHORTEST) -> Iterator[Window]:
    """The windows of an encoded clip, in order; silent ones are left out.

    ``shortest``: samples after which a pause ends a window.

    Raises:
        BadAudio: see :func:`transcribe`.
    """
    rest: Samples = np.zeros(0, dtype=np.float32)
    begin, doubled = 0, False
    blocks = sound(clip)
    block = next(blocks, None)
    while len(rest) or block is not None:
        while block is not None and len(rest) <= LONGEST:
            rest = np.concatenate((rest, block))
            block = next(blocks, None)
        cut, pause = find_cut(rest[:LONGEST], shortest, len(rest) <= LONGEST)
        yield from _voiced(begin, rest[:cut], doubled)
        kept = cut if pause else cut - OVERLAP
        begin, rest, doubled = begin + kept, rest[kept:], not pause


def find_cut(samples: Samples, shortest: int, last: bool) -> tuple[int, bool]:
    """Where to end a window, and whether there is a pause.

    In the first pause after ``shortest``; without one at the end, where this is the ``last`` sound of a clip, else in
    the quietest half second of the second half.
    """
    level = loudness(samples)
    if len(level) >= PAUSE:
        smooth = np.convolve(level, np.full(PAUSE, 1 / PAUSE), mode="valid")
        limit = max(QUIET, PAUSE_SHARE * float(np.quantile(level, 0.95)))
        pauses = np.flatnonzero(smooth[shortest // FRAME :] <= limit)
        if len(pauses):
            return (shortest // FRAME + int(pauses[0]) + PAUSE // 2) * FRAME, True
    if last:
        return len(samples), True
    half = len(smooth) // 2
    return (half + int(smooth[half:].argmin()) + PAUSE // 2) * FRAME, False


def loudness(samples: Samples) -> NDArray[np.float64]:
    """Root mean square of each 20 ms: float64 ``[n // FRAME]``."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(np.float64)
    level: NDArray[np.float64] = np.sqrt((frames**2).mean(axis=1))
    return level


def _voiced(begin: int, samples: Samples, doubled: bool) -> Iterator[Window]:
    heard = np.flatnonzero(loudness(samples) > QUIET)
    if len(heard):
        first, last = begin + int(heard[0]) * FRAME, begin + (int(heard[-1]) + 1) * FRAME
        yield Window(begin / RATE, samples, (first / RATE, last / RATE), doubled)


# -- joining -----------------------------------------------------------------------------------------------------


def drop_doubled(before: str, after: str) -> tuple[str, str]:
    """Both texts, the words that end the first and begin the second only once.

    The cut may have gone through a word: what was heard of it at either side of the seam goes.
    """
    left, right = before.split(), after.split()
    plain_left, plain_right = list(map(_plain, left)), list(map(_plain, right))
    best = (0, 0, 0)
    for torn_left in range(min(2, len(left))):
        for torn_right in range(min(2, len(right))):
            inner_left, inner_right = plain_left[: len(left) - torn_left], plain_right[torn_right:]
            count = _common(inner_left, inner_right)
            # A single common word may be chance, unless what is in the way is a piece of the word beside it.
            pieces = (not torn_left or "".join(inner_right[count : count + 1]).startswith(plain_left[-1])) and (
                not torn_right or "".join(inner_left[-count - 1 : -count or None]).endswith(plain_right[0])
            )
            if count > (0 if pieces else 1):
                best = max(best, (count, -torn_left, -torn_right))
    count, torn_left, torn_right = best
    if count:
        left, right = left[: len(left) + torn_left], right[count - torn_right :]
    return " ".join(left), " ".join(right)


def _common(left: list[str], right: list[str]) -> int:
    """The most words that end ``left`` and begin ``right``."""
    lengths = range(min(len(left), len(right), MOST_DOUBLED), 0, -1)
    return next((count for count in lengths if left[-count:] == right[:count]), 0)


def _plain(word: str) -> str:
    """A word as it is compared: case and punctuation do not count."""
    return re.sub(r"\W", "", word).casefold() or word


# -- decoding ----------------------------------------------------------------------------------------------------


def sound(clip: bytes) -> Iterator[Samples]:
    """An encoded clip as blocks of mono samples at :data:`RATE`; never more than a block of it is decoded at once.

    Raises:
        BadAudio: see :func:`transcribe`.
    """
    seconds = 0.0
    for block in _decoded(clip):
        seconds += len(block) / RATE
        _check_length(seconds)
        if not np.isfinite(block).all():
            raise BadAudio(
                "The clip has samples that are NaN or infinite.", "Replace them, e.g. with numpy.nan_to_num."
            )
        yield np.clip(block, -1, 1)
    if not seconds:
        raise BadAudio("The clip is empty: it has no samples.", "Check how it was recorded.")


def _seconds(clip: bytes) -> float:
    """What the head of the file says; 0 where it does not."""
    try:
        with soundfile.SoundFile(io.BytesIO(clip)) as file:
            return min(float(file.frames / file.samplerate), MAX_SECONDS)
    except (soundfile.LibsndfileError, TypeError):
        return 0.0


def _check_length(seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise BadAudio(f"The clip is longer than {MAX_SECONDS / 3600:g} hours.", "Cut it, and send the pieces.")


def _decoded(clip: bytes) -> Iterator[Samples]:
    try:
        file = soundfile.SoundFile(io.BytesIO(clip))
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless data without a format
        yield from _decoded_elsewhere(clip, error)
        return
    with file:
        if file.channels > MAX_CHANNELS:
            raise BadAudio(f"The clip has {file.channels} channels.", f"Send at most {MAX_CHANNELS}, best one.")
        mono = (block.mean(axis=1) for block in _read(file))
        yield from _resampled(mono, file.samplerate)


def _read(file: soundfile.SoundFile) -> Iterator[Samples]:
    try:
        while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
            yield block
    except soundfile.LibsndfileError as error:
        raise BadAudio(f"The clip is broken: {error}", "Save it again and send the whole file.") from error


def _resampled(blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
    if rate == RATE:
        yield from blocks
        return
    resampler = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def _decoded_elsewhere(clip: bytes, reason: Exception) -> Iterator[Samples]:
    """Formats that programs of the machine read (M4A, AAC, ... where ffmpeg is installed)."""
    check_container(clip, reason)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip"
        path.write_bytes(clip)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a reader imports modules that Python calls deprecated
            import audioread

            # The first reader knows only WAV and AIFF, which libsndfile has refused.
            readers = audioread.available_backends()[1:]
        try:
            with audioread.audio_open(str(path), readers) as file:
                mono = (_mono(block, file.channels) for block in file)
                yield from _resampled(mono, file.samplerate)
        except (audioread.DecodeError, OSError, EOFError) as error:
            raise unreadable(clip, reason) from error


def _mono(block: bytes, channels: int) -> Samples:
    samples = np.frombuffer(block, "<i2").reshape(-1, channels).astype(np.float32)
    return np.asarray(samples.mean(axis=1) / 32768, dtype=np.float32)
