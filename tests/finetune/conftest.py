"""A tiny random Gemma 4 Unified with the demo's tokenizer and template, conversations for it, and runs."""

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jupyter_gemma.engine.media import read_media_config
from jupyter_gemma.engine.prompt import PromptBuilder
from jupyter_gemma.engine.template import load_template
from jupyter_gemma.engine.tokenizer import load_tokenizer
from jupyter_gemma.finetune.plan import make_plan
from jupyter_gemma.finetune.train import Base, Training
from jupyter_gemma.model.checkpoint import load

DEMO = Path(__file__).parents[2] / "jupyter_gemma" / "models" / "demo"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """transformers' model and the folder that it wrote; the tokenizer, template and ids are the demo's."""
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    raw = json.loads((DEMO / "config.json").read_text())
    raw["text_config"] |= {
        **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16, "global_head_dim": 16},
        **{"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 24},
    }
    raw["vision_config"] |= {"mm_embed_dim": 64, "output_proj_dims": 64}
    config = Gemma4UnifiedConfig(**{key: value for key, value in raw.items() if key != "architectures"})
    config._attn_implementation = "eager"
    torch.manual_seed(5)
    model = Gemma4UnifiedForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.normal_(0, value.shape[-1] ** -0.5)
            elif not name.endswith("layer_scalar"):
                value.normal_(1.0, 0.1)
    path = tmp_path_factory.mktemp("tiny") / "base"
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        shutil.copyfile(DEMO / name, path / name)
    return model, path


@pytest.fixture
def open_base(tiny):
    """``open_base(quantization="none", path=None)``: the tiny model, ready to be taught."""

    def make(quantization="none", path=None):
        path = path or tiny[1]
        loaded, tokenizer = load(path, quantization=quantization, device="cpu"), load_tokenizer(path)
        template = load_template(path, tokenizer, instruct=True, architecture="gemma4_unified")
        media = read_media_config(path, loaded.config)
        return Base(loaded, PromptBuilder(loaded.config, tokenizer, template, media, 512), path, "tiny")

    return make


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A folder with a picture and a clip."""
    folder = tmp_path_factory.mktemp("media")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(folder / "plot.png")
    samples = (3000 * np.sin(np.arange(8000) / 9)).astype("<i2")
    with wave.open(str(folder / "clip.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return folder


def say(role, *parts):
    return {"role": role, "content": list(parts) if len(parts) > 1 else parts[0]}


@pytest.fixture
def conversations():
    """Text, a picture, a clip, and two turns; media are named relative to the file."""
    text, picture, clip = {"type": "text", "text": "What?"}, {"type": "image", "image": "plot.png"}, "clip.wav"
    return [
        [say("user", "How many rows are there?"), say("assistant", "There are 7 rows.")],
        [say("user", picture, text), say("assistant", "A line rises.")],
        [say("user", {"type": "audio", "audio": clip}, text), say("assistant", "open the file")],
        [say("user", "One"), say("assistant", "Two"), say("user", "Three"), say("assistant", "Four and five")],
    ]


@pytest.fixture
def write_lines(media):
    """``write_lines(conversations, name)``: a JSONL file beside the media."""

    def write(conversations, name="train.jsonl"):
        path = media / name
        path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
        return path

    return write


@pytest.fixture
def start(open_base, write_lines, conversations, tmp_path):
    """``start(**plan)``: a :class:`Training` of the tiny model on the four conversations."""

    def make(quantization="none", **values):
        data = values.pop("data", None) or str(write_lines(conversations))
        told = {
            "data": data,
            "out": str(tmp_path / "out"),
            "steps": 4,
            "batch": 4,
            "warmup": 0,
            "rate": 1e-3,
            "rank": 4,
        }
        return Training(open_base(quantization), make_plan({**told, **values}), lambda progress: None)

    return make
