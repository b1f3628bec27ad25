"""Pictures to patches, sound to frames, and what is said about files that cannot be used."""

import io
import os
import struct
import sys
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from jupyter_gemma.engine.media import (
    BUDGETS,
    MediaConfig,
    grid,
    picture_budget,
    read_clip,
    read_media_config,
    read_picture,
)
from jupyter_gemma.errors import BadAudio, BadCheckpoint, BadImage, BadOption
from jupyter_gemma.model.config import AudioConfig, ModelConfig, SpecialIds

PATCH, POSITIONS = 48, 1120


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def picture_of(data, budget=70, patch=PATCH, positions=POSITIONS):
    return read_picture(data, patch=patch, budget=budget, positions=positions)


def pixels_of(picture, patch=PATCH):
    """Patches put together again: float [rows * patch, columns * patch, 3]."""
    columns, rows = (picture.positions.amax(0) + 1).tolist()
    whole = torch.zeros(rows * patch, columns * patch, 3)
    for values, (x, y) in zip(picture.patches, picture.positions.tolist(), strict=True):
        whole[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] = values.view(patch, patch, 3)
    return whole


def noise(width, height, mode="RGB"):
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


# ------------------------------------------------------------------------------------------------ patches


def test_a_picture_of_the_right_size_is_only_cut():
    source = noise(10 * PATCH, 7 * PATCH)
    picture = picture_of(encoded(source), budget=70)
    assert picture.patches.shape == (70, PATCH * PATCH * 3)
    assert picture.patches.dtype == torch.float32
    assert picture.positions.dtype == torch.int64
    assert picture.positions[:2].tolist() == [[0, 0], [1, 0]]
    assert picture.positions[10].tolist() == [0, 1]
    assert torch.equal(pixels_of(picture), torch.from_numpy(np.array(source)) / 255)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (33, 57), (4000, 300), (1000, 1000)])
def test_the_grid_fills_the_budget_and_keeps_the_aspect(size, budget):
    columns, rows = grid(*size, patch=PATCH, budget=budget, positions=POSITIONS)
    assert columns * rows <= budget
    ideal = (budget * size[0] / size[1]) ** 0.5
    assert ideal - 1 <= columns <= ideal + 1e-9
    assert budget / ideal - 1 <= rows <= budget / ideal + 1e-9


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10_000, 1), (70, 1)), ((1, 10_000), (1, 70)), ((1, 1), (8, 8)), ((71, 1), (70, 1))],
)
def test_extreme_sides_have_at_least_one_patch(size, expected):
    assert grid(*size, patch=PATCH, budget=70, positions=POSITIONS) == expected


def test_no_more_patches_on_a_side_than_the_model_has_positions():
    assert grid(5000, 1, patch=PATCH, budget=48, positions=32) == (32, 1)
    assert picture_of(encoded(noise(500, 2)), budget=48, positions=32).positions[:, 0].max() == 31


def test_a_budget_of_one():
    assert len(picture_of(encoded(noise(37, 90)), budget=1).patches) == 1


# ------------------------------------------------------------------------------------------------ decoding


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_every_format(form):
    options = {"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}
    picture = picture_of(encoded(Image.new("RGB", (100, 70), (255, 0, 0)), form, **options))
    assert torch.allclose(pixels_of(picture)[30, 30], torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


def test_exif_orientation_turns_the_picture():
    source = Image.new("RGB", (96, 48), "white")
    source.paste((255, 0, 0), (0, 0, 48, 48))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left is up
    upright = pixels_of(picture_of(encoded(source, "PNG", exif=exif), budget=2))
    assert upright.shape == (96, 48, 3)
    assert upright[20, 20].tolist() == [1, 0, 0]
    assert upright[80, 20].tolist() == [1, 1, 1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(mode):
    if mode == "P":
        source = Image.new("P", (48, 48), 0)
        data = encoded(source, "PNG", transparency=0)
    else:
        data = encoded(Image.new(mode, (48, 48), 0))
    assert (pixels_of(picture_of(data, budget=1)) == 1).all()


def test_half_transparency_is_mixed():
    data = encoded(Image.new("RGBA", (48, 48), (0, 0, 0, 128)))
    assert torch.allclose(pixels_of(picture_of(data, budget=1)), torch.tensor(127 / 255), atol=1 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes_become_rgb(mode):
    data = encoded(Image.new("RGB", (48, 48), "white").convert(mode), "TIFF")
    assert (pixels_of(picture_of(data, budget=1)) == 1).all()


def test_16_bits_are_scaled():
    data = encoded(Image.fromarray(np.full((48, 48), 32896, dtype=np.uint16)))
    assert torch.allclose(pixels_of(picture_of(data, budget=1)), torch.tensor(128 / 255))


def test_the_first_picture_of_an_animation():
    frames = [Image.new("RGB", (48, 48), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixels_of(picture_of(data, budget=1))[0, 0].tolist() == [1, 0, 0]


# ------------------------------------------------------------------------------------------------ bad pictures


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "empty"),
        (b"x,y\n1,2\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|broken"),
        (png_header(0, 5), "no pixels|broken|not a picture"),
        (png_header(100_000, 10_000), "too large|pixels"),
        (png_header(50, 50), "broken"),
        (encoded(noise(200, 200))[:5000], "broken"),
        (encoded(noise(200, 200), "JPEG")[:2000], "broken"),
        (encoded(Image.new("F", (9, 9), 1.0), "TIFF"), "8 bits"),
    ],
)
def test_bad_pictures(data, sentence):
    with pytest.raises(BadImage, match=sentence) as caught:
        picture_of(data)
    assert caught.value.fix


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_more_pixels_than_pillow_minds_and_fewer_than_it_refuses():
    with pytest.raises(BadImage, match="11000 x 10000 pixels; at most 100,000,000"):
        picture_of(png_header(11_000, 10_000))


# ------------------------------------------------------------------------------------------------ budgets, config


def test_budgets():
    assert picture_budget(None, 280) == 280
    assert picture_budget(1120, 280) == 1120
    assert picture_budget(None, 48) == picture_budget(48, 48) == 48
    for wrong in (0, -70, 48, 100):
        with pytest.raises(BadOption, match=f"image_tokens cannot be {wrong}.*70, 140, 280, 560, 1120"):
            picture_budget(wrong, 280)


def config(frame=640):
    audio = AudioConfig(frame) if frame else None
    return ModelConfig(
        "gemma4_unified", 9, 8, 8, (), {}, 1e-6, 1.0, True, True, None, 9, SpecialIds(2, (1,), 0), audio=audio
    )


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("other.json", "{}", MediaConfig(280, 640, 16000)),
        ("preprocessor_config.json", '{"max_soft_tokens": 560}', MediaConfig(560, 640, 16000)),
        (
            "processor_config.json",
            '{"image_processor": {"max_soft_tokens": 48}, "feature_extractor": {"sampling_rate": 8000}}',
            MediaConfig(48, 640, 8000),
        ),
        (
            "processor_config.json",
            '{"feature_extractor": {"audio_tokens_multiple": 8}}',
            MediaConfig(280, 640, 16000, 8),
        ),
        (
            "processor_config.json",
            '{"feature_extractor": {"audio_centered": true}}',
            MediaConfig(frame=640, centered=True),
        ),
    ],
)
def test_media_config(tmp_path, file, text, expected):
    (tmp_path / file).write_text(text)
    assert read_media_config(tmp_path, config()) == expected


def test_a_processor_of_another_model(tmp_path):
    (tmp_path / "processor_config.json").write_text('{"feature_extractor": {"audio_samples_per_token": 320}}')
    with pytest.raises(BadCheckpoint, match="frames of 320 samples, the model takes 640"):
        read_media_config(tmp_path, config())
    assert read_media_config(tmp_path, config(frame=0)).frame == 0


# ------------------------------------------------------------------------------------------------ sound


def tone(seconds=0.5, rate=16000, channels=1, height=440.0):
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * height * time)
    return wave if channels == 1 else np.stack([wave * (1 - index / channels) for index in range(channels)], axis=1)


def sound(samples, rate=16000, form="WAV", subtype=None):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def test_frames_of_a_clip():
    samples = tone(0.09).astype(np.float32)  # 1440 samples: two frames and a quarter
    frames = read_clip(sound(samples, subtype="FLOAT"), frame=640)
    assert frames.shape == (3, 640)
    assert frames.dtype == torch.float32
    assert torch.equal(frames.flatten()[:1440], torch.from_numpy(samples))
    assert not frames.flatten()[1440:].any()


def test_an_offset_is_taken_away_where_it_is_asked_for():
    samples = tone().astype(np.float32)  # whole periods: its median is 0
    data = sound(samples + np.float32(0.125), subtype="FLOAT")
    centered = read_clip(data, frame=640, centered=True).flatten()[: len(samples)]
    assert (centered - torch.from_numpy(samples)).abs().max() < 1e-6
    assert float(read_clip(data, frame=640).flatten()[: len(samples)].mean()) == pytest.approx(0.125, abs=1e-5)


@pytest.mark.parametrize(("count", "expected"), [(1, 8), (8 * 640, 8), (8 * 640 + 1, 16)])
def test_frames_are_filled_up_to_a_multiple(count, expected):
    samples = np.full(count, 0.25, np.float32)
    frames = read_clip(sound(samples, subtype="FLOAT"), frame=640, multiple=8)
    assert frames.shape == (expected, 640)
    assert (frames.flatten()[:count] == 0.25).all()
    assert not frames.flatten()[count:].any()


@pytest.mark.parametrize(
    ("form", "subtype", "error"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_U8", 2**-6),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.05),
    ],
)
def test_formats_are_scaled_to_one(form, subtype, error):
    frames = read_clip(sound(tone(), form=form, subtype=subtype), frame=640)
    assert abs(frames.flatten()[:8000].numpy() - tone()).max() <= error


def test_mp3():
    frames = read_clip(sound(tone(), form="MP3"), frame=640)
    assert 0.45 < frames.abs().max() < 0.55


def test_channels_are_averaged():
    frames = read_clip(sound(tone(channels=2), subtype="FLOAT"), frame=640)
    assert torch.allclose(frames.flatten()[:8000], torch.from_numpy(tone() * 0.75).float(), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate):
    samples = read_clip(sound(tone(rate=rate), rate, subtype="FLOAT"), frame=640).flatten()[:8000].numpy()
    inner = slice(400, -400)  # a cut tone rings at its ends
    assert abs(samples - tone())[inner].max() < 2e-3


def test_samples_are_clipped():
    frames = read_clip(sound(tone() * 4, subtype="FLOAT"), frame=640)
    assert frames.abs().max() == 1


def test_the_longest_clip_is_taken_and_a_longer_one_not():
    data = sound(tone(1.0, rate=8000), 8000)
    assert len(read_clip(data, frame=640, max_seconds=1.0)) == 25
    with pytest.raises(BadAudio, match=r"1\.0 s long.*at most 0\.9 s.*Cut it"):
        read_clip(data, frame=640, max_seconds=0.9)


def test_an_hour_is_refused_by_its_header():
    data = bytearray(sound(np.zeros(100), 16000))
    data[4:8] = struct.pack("<I", 36 + 2 * 16000 * 3600)
    data[40:44] = struct.pack("<I", 2 * 16000 * 3600)
    data += b"\0" * (2 * 16000 * 40)
    with pytest.raises(BadAudio, match="s long"):
        read_clip(bytes(data), frame=640)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "0 bytes"),
        (b"just some text, saved as clip.wav", "not a sound file.*WAV, FLAC, OGG or MP3"),
        (encoded(Image.new("RGB", (9, 9))), "not a sound file"),
        (sound(tone())[:20], "not a sound file"),
        (sound(np.zeros(0)), "no samples"),
        (sound(np.zeros(16000)), "silent: every sample is 0"),
        (sound(np.where(np.arange(900) == 5, np.nan, 0.1), subtype="FLOAT"), "NaN"),
        (sound(np.where(np.arange(900) == 5, np.inf, 0.1), subtype="FLOAT"), "infinite"),
    ],
)
def test_bad_clips(data, sentence):
    with pytest.raises(BadAudio, match=sentence) as caught:
        read_clip(data, frame=640)
    assert caught.value.fix


FFMPEG = """#!{python}
import sys
if "-version" not in sys.argv:
    assert open(sys.argv[2], "rb").read().startswith(b"\\0\\0\\0 ftypM4A")
    sys.stderr.write("Duration: 00:00:00.1\\nStream #0: Audio: aac, 44100 Hz, stereo, fltp\\n")
    sys.stdout.buffer.write({pcm!r})
"""


@pytest.fixture
def _ffmpeg(tmp_path, monkeypatch):
    """A program of that name which decodes one M4A file."""
    import audioread

    pcm = (tone(0.1, 44100, channels=2) * 32767).astype("<i2").tobytes()
    program = tmp_path / "ffmpeg"
    program.write_text(FFMPEG.format(python=sys.executable, pcm=pcm))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    audioread.available_backends(flush_cache=True)
    yield
    audioread.BACKENDS.clear()


@pytest.mark.filterwarnings("ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("_ffmpeg")
@pytest.mark.skipif(sys.platform == "win32", reason="the fake program is a script")
def test_what_libsndfile_cannot_read_goes_to_librosa():
    frames = read_clip(b"\0\0\0 ftypM4A ", frame=640)
    assert frames.shape == (3, 640)
    assert abs(frames.flatten()[400:1200].numpy() - tone(0.1)[400:1200] * 0.75).max() < 2e-3
    with pytest.raises(BadAudio, match=r"0\.1 s long.*at most 0\.05 s"):
        read_clip(b"\0\0\0 ftypM4A ", frame=640, max_seconds=0.05)


@pytest.mark.parametrize("start", [b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"ffconcat version 1.0\nfile secret.wav\n"])
def test_no_other_program_sees_a_playlist(start, monkeypatch):
    """It could have the program open other files of this machine."""
    monkeypatch.setattr("audioread.audio_open", lambda *arguments: pytest.fail("another program reads the clip"))
    with pytest.raises(BadAudio, match="not a sound file"):
        read_clip(start, frame=640)


def test_a_small_file_with_very_many_samples_is_refused():
    rate = 500_000
    file = io.BytesIO()
    soundfile.write(file, np.zeros((20 * rate, 8), dtype=np.int16), rate, format="FLAC")
    assert len(file.getvalue()) < 2_000_000
    with pytest.raises(BadAudio, match="8 channels of 10000000 samples"):
        read_clip(file.getvalue(), frame=640)
