"""Pictures to patches and sound to frames, as the checkpoint's processors make them.

Rules: ``image_processing_gemma4_unified.py`` and ``feature_extraction_gemma4_unified.py`` of transformers 5.23.
"""

from __future__ import annotations

import io
import math
import re
import struct
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from jupyter_gemma.engine.tokenizer import read_json
from jupyter_gemma.errors import BadAudio, BadCheckpoint, BadImage, BadOption
from jupyter_gemma.model.config import ModelConfig

BUDGETS = (70, 140, 280, 560, 1120)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 10**8
MAX_SAMPLES = 5 * 10**7  # 200 MB; a few kilobytes of FLAC can hold more
DEFAULT_BUDGET = 280
DEFAULT_RATE = 16000
# How M4A, raw AAC, CAF, WebM and WMA begin: what ffmpeg may see. A playlist, which would have it
# open other files, begins with none of these.
_CONTAINERS = re.compile(rb"....ftyp|\xff[\xf1\xf9]|caff|\x1a\x45\xdf\xa3|\x30\x26\xb2\x75", re.DOTALL)


@dataclass(frozen=True)
class MediaConfig:
    """``image_budget`` soft tokens a picture; ``frame`` samples a soft token at ``rate`` Hz (0: no sound).

    For a model that was trained so: ``multiple``, the frames of a clip are filled up to a multiple of this number;
    ``centered``, the median of a clip's samples is 0.
    """

    image_budget: int = DEFAULT_BUDGET
    frame: int = 0
    rate: int = DEFAULT_RATE
    multiple: int = 1
    centered: bool = False


@dataclass(frozen=True)
class Picture:
    """``patches``: float32 ``[P, patch * patch * 3]`` in [0, 1], flattened height, width, channel.

    ``positions``: int64 ``[P, 2]``, (x, y) of each patch; rows from top to bottom.
    """

    patches: Tensor
    positions: Tensor


def read_media_config(path: Path, config: ModelConfig) -> MediaConfig:
    """What the checkpoint's ``processor_config.json`` (or ``preprocessor_config.json``) says.

    Raises:
        BadCheckpoint: a frame length that contradicts the model's.
    """
    found = read_json(path / "processor_config.json") or read_json(path / "preprocessor_config.json")
    image = _section(found, "image_processor")
    sound = _section(found, "feature_extractor")
    frame = config.audio.frame if config.audio else 0
    stated = sound.get("audio_samples_per_token", frame)
    if frame and stated != frame:
        raise BadCheckpoint(
            f"{path}: the processor makes frames of {stated} samples, the model takes {frame}.",
            "Fetch config.json and processor_config.json of the same checkpoint.",
        )
    return MediaConfig(
        image_budget=int(image.get("max_soft_tokens", DEFAULT_BUDGET)),
        frame=frame,
        rate=int(sound.get("sampling_rate", DEFAULT_RATE)),
        multiple=int(sound.get("audio_tokens_multiple", 1)),
        centered=bool(sound.get("audio_centered", False)),
    )


def _section(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """``preprocessor_config.json`` is flat, ``processor_config.json`` has one section a processor."""
    section = found.get(name, found)
    return section if isinstance(section, Mapping) else {}


def picture_budget(requested: int | None, default: int) -> int:
    """Soft tokens a picture may have: ``requested``, or the checkpoint's ``default`` for None.

    Raises:
        BadOption: neither one of :data:`BUDGETS` nor the default.
    """
    if requested is None or requested == default:
        return default
    if requested not in BUDGETS:
        allowed = ", ".join(map(str, sorted({*BUDGETS, default})))
        raise BadOption(f"image_tokens cannot be {requested}.", f"Choose one of {allowed}.")
    return requested


def read_picture(data: bytes, *, patch: int, budget: int, positions: int) -> Picture:
    """Decode a picture and cut it into patches.

    Upright by its EXIF orientation, transparency on white, RGB; then scaled up or down, keeping its aspect,
    until the patches fill the budget.

    Args:
        data: an encoded file, one of :data:`FORMATS`; of an animation the first picture.
        patch: side of a patch in pixels (48 for Gemma 4).
        budget: most patches.
        positions: most patches along one side.

    Raises:
        BadImage: no picture, a broken one, no pixels or more than 10^8.
    """
    picture = _decode(data)
    columns, rows = grid(picture.width, picture.height, patch=patch, budget=budget, positions=positions)
    picture = picture.resize((columns * patch, rows * patch), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(picture).copy())  # [rows * patch, columns * patch, 3]
    tiles = pixels.view(rows, patch, columns, patch, 3).transpose(1, 2)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return Picture(
        patches=tiles.reshape(rows * columns, patch * patch * 3).float() / 255,
        positions=torch.stack((x, y), dim=-1).reshape(-1, 2),
    )


def grid(width: int, height: int, *, patch: int, budget: int, positions: int) -> tuple[int, int]:
    """(columns, rows) of patches for a picture of that size: both sides floored, each at least one patch."""
    factor = math.sqrt(budget * patch**2 / (height * width))
    columns = math.floor(factor * width / patch)
    rows = math.floor(factor * height / patch)
    # A side shorter than one patch becomes one, and then the other side has the whole budget.
    if rows == 0:
        columns, rows = budget, 1
    if columns == 0:
        columns, rows = 1, budget
    return min(columns, positions), min(rows, positions)


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise BadImage("The picture is empty (0 bytes).", "Check how it was made.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            _check_size(*picture.size)
            return _on_white(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError as error:
        raise BadImage(f"The picture is too large: {error}", "Scale it down first.") from error
    except UnidentifiedImageError as error:
        raise BadImage(
            f"These {len(data)} bytes are not a picture that can be read.", f"Send one of {', '.join(FORMATS)}."
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error) as error:
        raise BadImage(f"The picture is broken: {error}.", "Save it again and send the whole file.") from error


def _check_size(width: int, height: int) -> None:
    if width * height == 0:
        raise BadImage(f"The picture has no pixels ({width} x {height}).", "Check how it was made.")
    if width * height > MAX_PIXELS:
        raise BadImage(
            f"The picture has {width} x {height} pixels; at most {MAX_PIXELS:,} are read.", "Scale it down first."
        )


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow would cut 16-bit values off at 255 instead of scaling them.
        picture = Image.fromarray((np.asarray(picture).astype(np.float32) / 257).round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise BadImage(
            f"The picture has pixels of Pillow's mode {picture.mode!r}, whose white is unknown.",
            "Convert it to 8 bits a channel.",
        )
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def read_clip(
    data: bytes,
    *,
    frame: int,
    rate: int = DEFAULT_RATE,
    multiple: int = 1,
    centered: bool = False,
    max_seconds: float = 30.0,
) -> Tensor:
    """Decode a clip to mono at ``rate`` Hz and cut it into frames: float32 ``[T, frame]`` in [-1, 1].

    The end is filled up with zeros.

    Args:
        data: an encoded file: whatever libsndfile reads (WAV, FLAC, OGG, MP3, ...) or librosa's other readers.
        frame: samples of one soft token (640 for Gemma 4: 40 ms).
        rate: samples a second that the model expects.
        multiple: of which T is one.
        centered: take the median away: the offset of the silence, where the mean has some of the voice too.
        max_seconds: longest clip.

    Raises:
        BadAudio: no sound file, a broken, empty or silent one, one with NaN or infinity, or one that is too long.
    """
    if not data:
        raise BadAudio("The clip is empty (0 bytes).", "Check how it was recorded.")
    samples, source_rate = _decode_sound(data, max_seconds)  # [n, channels]
    _check_length(len(samples) / source_rate, max_seconds)  # a header may know no length
    _check_sound(samples)
    mono = samples.mean(axis=1)
    if centered:
        mono = mono - np.median(mono)
    if source_rate != rate:
        # What librosa.resample does with "soxr_hq", without the seconds that importing librosa costs.
        mono = soxr.resample(mono, source_rate, rate, quality="HQ")[: math.ceil(len(mono) * rate / source_rate)]
    padded = np.zeros(math.ceil(len(mono) / (frame * multiple)) * frame * multiple, dtype=np.float32)
    np.clip(mono, -1, 1, out=padded[: len(mono)])
    return torch.from_numpy(padded).view(-1, frame)


def _decode_sound(data: bytes, max_seconds: float) -> tuple[NDArray[np.float32], int]:
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_length(file.frames / file.samplerate, max_seconds)
            if file.frames * file.channels > MAX_SAMPLES:
                raise BadAudio(
                    f"The clip has {file.channels} channels of {file.frames} samples; at most {MAX_SAMPLES} are read.",
                    "Send one channel, at 16 kHz.",
                )
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: headerless data without a format
        return _decode_elsewhere(data, max_seconds, error)


def check_container(data: bytes, reason: Exception) -> None:
    """Hold back from other programs what is no sound file.

    Raises:
        BadAudio: ``data`` begins as no kind of sound file that such a program reads; ``reason`` is libsndfile's.
    """
    if not _CONTAINERS.match(data):
        raise unreadable(data, reason)


def unreadable(data: bytes, reason: Exception) -> BadAudio:
    """The error for a clip that no reader knows."""
    return BadAudio(
        f"These {len(data)} bytes are not a sound file that can be read ({reason}).",
        "Send WAV, FLAC, OGG or MP3; M4A and AAC need ffmpeg to be installed.",
    )


def _decode_elsewhere(data: bytes, max_seconds: float, reason: Exception) -> tuple[NDArray[np.float32], int]:
    """Formats that librosa reads through programs of the machine (M4A, AAC, ... where ffmpeg is installed)."""
    check_container(data, reason)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # librosa calls these readers deprecated
        import audioread
        import librosa

        file = Path(folder) / "clip"
        file.write_bytes(data)
        # The first reader knows only WAV and AIFF, which libsndfile has refused, and leaves the file open.
        readers = audioread.available_backends()[1:]
        try:
            with audioread.audio_open(str(file), readers) as sound:
                _check_length(sound.duration, max_seconds)
                samples, rate = librosa.load(sound, sr=None, mono=False)
        except (audioread.DecodeError, OSError, EOFError, ValueError) as error:
            raise unreadable(data, reason) from error
    return np.atleast_2d(samples).T, int(rate)


def _check_length(seconds: float, most: float) -> None:
    if seconds > most:
        raise BadAudio(
            f"The clip is {seconds:.1f} s long; the model takes at most {most:g} s.",
            "Cut it, best at silences, and send the pieces one by one.",
        )


def _check_sound(samples: NDArray[np.float32]) -> None:
    if samples.size == 0:
        raise BadAudio("The clip is empty: it has no samples.", "Check how it was recorded.")
    if not np.isfinite(samples).all():
        raise BadAudio("The clip has samples that are NaN or infinite.", "Replace them, e.g. with numpy.nan_to_num.")
    if not samples.any():
        raise BadAudio("The clip is silent: every sample is 0.", "Check the microphone or the array.")
