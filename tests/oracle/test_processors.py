"""Our pictures, frames and prompts against transformers' processors.

torchvision, which the processor of ``gemma4_unified`` imports, does not go with the CPU build of torch. So
pictures are compared with the PIL processor of ``gemma4`` (same sizes, same resize, patches of 16 pixels), whose
patches are then joined 3 x 3 as ``gemma4_unified`` joins them.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import jupyter_gemma
from jupyter_gemma.engine.media import BUDGETS, read_clip, read_picture
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.types import ImagePart, Message, TextPart

DEMO = Path(jupyter_gemma.__file__).parent / "models" / "demo"
PATCH, SIDE = 48, 3


@pytest.fixture(scope="module")
def figure():
    """A real figure, as a notebook shows it: PNG with transparency switched off."""
    matplotlib = pytest.importorskip("matplotlib", reason="needs the extra 'demo'")
    matplotlib.use("agg")
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 4.8), dpi=100)
    axes = drawn.subplots()
    axes.plot(np.arange(60), np.cumsum(np.random.default_rng(0).normal(size=60)), label="walk")
    axes.set_title("Price by day")
    axes.legend()
    file = io.BytesIO()
    drawn.savefig(file, format="png")
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def theirs(picture, budget):
    """(patches [P, 6912], positions [P, 2]) of the PIL processor, joined 3 x 3."""
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    out = Gemma4ImageProcessorPil(max_soft_tokens=budget)(picture, return_tensors="pt")
    count = int(out["num_soft_tokens_per_image"][0]) * SIDE**2
    small, places = out["pixel_values"][0, :count], out["image_position_ids"][0, :count]
    columns, rows = (places.amax(0) + 1).tolist()
    # Small patches lie row by row; a model patch is rows, pixel rows, columns, pixel columns of 3 x 3 of them.
    tiles = small.view(rows // SIDE, SIDE, columns // SIDE, SIDE, PATCH // SIDE, PATCH // SIDE, 3)
    joined = tiles.permute(0, 2, 1, 4, 3, 5, 6).reshape(-1, PATCH * PATCH * 3)
    corners = places.view(rows, columns, 2)[::SIDE, ::SIDE].reshape(-1, 2) // SIDE
    return joined, corners


@pytest.mark.parametrize("budget", BUDGETS)
def test_pictures_of_every_budget(figure, budget):
    check_picture(figure, budget)


@pytest.mark.parametrize("size", [(480, 640), (1920, 1080), (100, 100), (61, 977), (2000, 20), (9, 900), (480, 336)])
def test_pictures_of_many_sizes(figure, size):
    check_picture(figure.resize(size), 280)


def check_picture(picture, budget):
    file = io.BytesIO()
    picture.save(file, "PNG")
    found = read_picture(file.getvalue(), patch=PATCH, budget=budget, positions=1120)
    patches, positions = theirs(picture, budget)
    assert torch.equal(found.positions, positions)
    # The same bytes; dividing by 255 and multiplying by 1/255 round differently in the last bit.
    assert (found.patches - patches).abs().max() <= 2**-24


def test_the_join_is_that_of_gemma4_unified(figure):
    """Its ``patches_merge`` is read from the source file, which cannot be imported without torchvision."""
    import math

    import transformers

    file = Path(transformers.__file__).parent / "models/gemma4_unified/image_processing_gemma4_unified.py"
    source = file.read_text("utf-8")
    code = source[source.index("def patches_merge(") : source.index("@auto_docstring(custom_intro")]
    names = {"torch": torch, "math": math}
    exec(code, names)  # transformers' own function, for comparison only
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    out = Gemma4ImageProcessorPil(max_soft_tokens=280)(figure, return_tensors="pt")
    count = int(out["num_soft_tokens_per_image"][0])
    small, places = (out[key][:, : count * SIDE**2] for key in ("pixel_values", "image_position_ids"))
    merged, corners = names["patches_merge"](small, places, count)
    joined, positions = theirs(figure, 280)
    assert torch.equal(merged[0], joined)
    assert torch.equal(corners[0], positions)


@pytest.mark.filterwarnings("ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("rate", [16000, 44100, 22050, 8000])
@pytest.mark.parametrize("seconds", [0.04, 1.0, 2.345])
def test_frames(rate, seconds):
    """The audio of a real file, resampled by librosa, in transformers' frames."""
    import librosa
    from transformers.models.gemma4_unified.feature_extraction_gemma4_unified import Gemma4UnifiedAudioFeatureExtractor

    time = np.arange(round(seconds * rate)) / rate
    samples = np.stack([0.5 * np.sin(2 * np.pi * (200 + 300 * time) * time), 0.2 * np.cos(2000 * time)], axis=1)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="PCM_16")
    wave, _ = librosa.load(io.BytesIO(file.getvalue()), sr=16000, mono=True, res_type="soxr_hq")
    expected = Gemma4UnifiedAudioFeatureExtractor()(wave, return_tensors="pt")
    found = read_clip(file.getvalue(), frame=640)
    assert expected["input_features_mask"].all()
    assert torch.equal(found, expected["input_features"][0])


TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {% if loop.index > 3 %}{% break %}{% endif %}
    {{ message.role | upper }}: {% if message.content is string %}{{ message.content }}{% else %}
    {% for item in message.content %}{{ item.text or "<|image|>" }}{% endfor %}{% endif %}

{% endfor %}
{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{{ "thinking" if enable_thinking else "plain" }}{% if add_generation_prompt %} go{% endif %}
"""


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("source", [TEMPLATE, None], ids=["features", "demo"])
def test_templates_render_as_in_transformers(tmp_path, source, thinking):
    from transformers.utils.chat_template_utils import render_jinja_template

    source = source or (DEMO / "chat_template.jinja").read_text("utf-8")
    (tmp_path / "chat_template.jinja").write_text(source, "utf-8")
    tools = [
        {"type": "function", "function": {"name": "f", "description": "<é> & 'x'", "parameters": {"type": "object"}}}
    ]
    theirs_messages = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What? "}]},
        {"role": "assistant", "content": "A line.\n"},
        {"role": "user", "content": "More"},
    ]
    expected, _ = render_jinja_template(
        [theirs_messages],
        tools=tools,
        chat_template=source,
        add_generation_prompt=True,
        bos_token="<bos>",
        enable_thinking=thinking,
    )
    template = load_template(tmp_path, load_tokenizer(DEMO), instruct=True, architecture="gemma4_unified")
    messages = [
        Message("system", (TextPart("Short."),)),
        Message("user", (ImagePart(b""), TextPart(" What? "))),
        Message("assistant", (TextPart("A line.\n"),)),
        Message("user", (TextPart("More"),)),
    ]
    # transformers drops tools that a template does not know; ours refuses them.
    known = tools if "tools" in source else ()
    assert template.render(messages, tools=known, thinking=thinking) == expected[0]
