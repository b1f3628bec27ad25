"""Shared by the oracle tests: a tiny random Gemma 4 Unified model, inputs for it, llama.cpp, and the comparison.

The same weights go to transformers (as the checkpoint that it writes itself), to llama.cpp (as GGUF) and to us,
so each oracle also checks the other one.
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch

from jupyter_gemma.model.decoder import Prompt, SoftTokens
from jupyter_gemma.settings import load_settings
from jupyter_gemma.store import find_model, prepare

PATCH = 48
FRAME = 640
IMAGE_BEGIN, IMAGE_END, IMAGE, AUDIO_BEGIN, AUDIO_END, AUDIO, VIDEO = range(4, 11)
FIRST_TEXT_ID, VOCAB, WINDOW = 11, 320, 24

# 8 layers so that both kinds follow each other both ways; widths are multiples of 32, so that Q4_0 and Q8_0 fit.
TEXT_CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 8,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention", "full_attention"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": WINDOW,
    "max_position_embeddings": 512,
    "final_logit_softcapping": 30.0,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ comparison


@pytest.fixture(scope="session")
def assert_close():
    """``assert_close(ours, theirs, tolerance, what)``: largest difference relative to the largest |logit|."""

    def check(ours, theirs, tolerance, what=""):
        ours, theirs = torch.as_tensor(ours).float(), torch.as_tensor(theirs).float()
        assert ours.shape == theirs.shape, f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
        assert torch.isfinite(ours).all(), f"{what}: not finite"
        scale = theirs.abs().max().item()
        difference = (ours - theirs).abs() / scale
        worst = np.unravel_index(int(difference.argmax()), tuple(difference.shape))
        message = (
            f"{what}: worst relative difference {difference.max():.3g} (allowed {tolerance:.3g}) at position "
            f"{worst[0]}, token {worst[-1]}: ours {ours[worst]:.7g}, theirs {theirs[worst]:.7g}, scale {scale:.4g}; "
            f"positions beyond: {(difference > tolerance).any(-1).nonzero().flatten().tolist()}"
        )
        print(message)
        assert difference.max() <= tolerance, message

    return check


# ------------------------------------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Picture:
    """uint8 pixels [rows * 48, columns * 48, 3]; one soft token for each 48 x 48 patch, row by row."""

    pixels: torch.Tensor
    placeholder: int = IMAGE

    def __len__(self):
        return self.pixels.shape[0] * self.pixels.shape[1] // PATCH**2

    @property
    def patches(self):
        """float32 [P, 6912] in [0, 1], values in the order height, width, channel."""
        rows, columns = self.pixels.shape[0] // PATCH, self.pixels.shape[1] // PATCH
        tiles = (self.pixels.float() / 255).reshape(rows, PATCH, columns, PATCH, 3)
        return tiles.permute(0, 2, 1, 3, 4).reshape(len(self), PATCH * PATCH * 3)

    @property
    def positions(self):
        """int64 [P, 2], (x, y)."""
        index, columns = torch.arange(len(self)), self.pixels.shape[1] // PATCH
        return torch.stack((index % columns, index // columns), dim=-1)


@dataclass(frozen=True)
class Clip:
    """float32 samples [T * 640] in [-1, 1]."""

    samples: torch.Tensor
    placeholder: int = AUDIO

    def __len__(self):
        return self.samples.numel() // FRAME

    @property
    def frames(self):
        return self.samples.reshape(-1, FRAME)


@dataclass(frozen=True)
class Case:
    """Pieces in order: a list of token ids, a Picture or a Clip."""

    pieces: tuple

    @property
    def ids(self):
        """int64 [T] with expanded placeholders."""
        expanded = [piece if isinstance(piece, list) else [piece.placeholder] * len(piece) for piece in self.pieces]
        return torch.tensor([token for piece in expanded for token in piece])

    @property
    def pictures(self):
        return [piece for piece in self.pieces if isinstance(piece, Picture)]

    @property
    def clips(self):
        return [piece for piece in self.pieces if isinstance(piece, Clip)]

    @cached_property
    def blocks(self):
        """int64 [T]: the number of the picture that a position belongs to, -1 outside of pictures."""
        numbers = []
        for number, piece in enumerate(self.pieces):
            numbers += [number if isinstance(piece, Picture) else -1] * len(piece)
        return torch.tensor(numbers)

    @property
    def prompt(self):
        """The same for our model; a video frame is a picture there, with the picture's placeholder."""
        soft, offset = [], 0
        for piece in self.pieces:
            if isinstance(piece, Picture):
                soft.append(SoftTokens(offset, patches=piece.patches, positions=piece.positions))
            elif isinstance(piece, Clip):
                soft.append(SoftTokens(offset, frames=piece.frames))
            offset += len(piece)
        ids = self.ids
        return Prompt(torch.where(ids == VIDEO, IMAGE, ids), tuple(soft))


class Maker:
    """Random pieces from one seed."""

    def __init__(self, seed):
        self.random = torch.Generator().manual_seed(seed)

    def text(self, count):
        return torch.randint(FIRST_TEXT_ID, VOCAB, (count,), generator=self.random).tolist()

    def picture(self, columns, rows, placeholder=IMAGE):
        """A tinted gradient with noise, between its begin and end tokens."""
        height, width = rows * PATCH, columns * PATCH
        ramp = torch.linspace(0, 1, width)[None, :, None] * torch.rand(3, generator=self.random)
        noise = torch.rand(height, width, 3, generator=self.random)
        pixels = ((0.7 * ramp + 0.3 * noise) * 255).to(torch.uint8)
        return [IMAGE_BEGIN], Picture(pixels, placeholder), [IMAGE_END]

    def clip(self, frames):
        """A chirp with noise, between its begin and end tokens."""
        time = torch.arange(frames * FRAME) / 16000
        samples = 0.4 * torch.sin(2 * torch.pi * (200 + 300 * time) * time)
        samples += 0.1 * torch.randn(len(time), generator=self.random)
        return [AUDIO_BEGIN], Clip(samples.clamp(-1, 1)), [AUDIO_END]


@pytest.fixture(scope="session")
def cases():
    """Prompts by name. All are longer than the window of 24, and so is the block of ``image``."""
    make = Maker(3)
    text = make.text
    return {
        "text": Case((text(100),)),
        "audio": Case((text(20), *make.clip(30), text(25))),
        "image": Case((text(30), *make.picture(6, 5), text(30))),
        "two images": Case((text(5), *make.picture(4, 3), *make.picture(2, 5), text(20))),
        "image and audio": Case((text(9), *make.picture(5, 2), text(4), *make.clip(12), text(15))),
        "video": Case((text(9), *make.picture(3, 3, VIDEO), text(3), *make.picture(3, 3, VIDEO), text(20))),
    }


# ------------------------------------------------------------------------------------------------ the tiny model


def _random_tensor(name, shape, random):
    """Weights of a size that every part of the model shows in the logits and none of them blows an error up."""

    def normal(mean, deviation):
        return torch.randn(shape, generator=random) * deviation + mean

    if "q_norm" in name or "k_norm" in name:
        return normal(0.6, 0.15)
    if name.endswith("layer_scalar"):
        return normal(0.9, 0.2)
    if name.endswith("bias"):
        return normal(0.0, 0.3)
    if len(shape) == 1:
        return normal(1.0, 0.3)
    if "embed_tokens" in name or "pos_embedding" in name:
        return normal(0.0, 0.5)
    return normal(0.0, 1.5 * shape[-1] ** -0.5)


@pytest.fixture(scope="session")
def random_tensor():
    """``random_tensor(name, shape, generator)``"""
    return _random_tensor


@pytest.fixture(scope="session")
def text_config():
    """The tiny model's, as transformers takes it."""
    return dict(TEXT_CONFIG)


@dataclass(frozen=True)
class Tiny:
    """``model``: transformers' (float32, eager attention); ``path``: the sharded checkpoint that it wrote."""

    model: torch.nn.Module
    path: Path

    @cached_property
    def tensors(self):
        """The checkpoint's tensors by the names of the real 12B, as numpy arrays."""
        from safetensors.numpy import load_file

        shards = sorted(self.path.glob("*.safetensors"))
        return {name: value for shard in shards for name, value in load_file(shard).items()}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A random Gemma 4 Unified, saved by transformers in several shards with an index."""
    from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

    width = TEXT_CONFIG["hidden_size"]
    config = Gemma4UnifiedConfig(
        text_config=dict(TEXT_CONFIG),
        vision_config={"mm_embed_dim": width, "mm_posemb_size": 32, "output_proj_dims": width},
        audio_config={},
        boi_token_id=IMAGE_BEGIN,
        eoi_token_id=IMAGE_END,
        image_token_id=IMAGE,
        boa_token_id=AUDIO_BEGIN,
        eoa_token_index=AUDIO_END,
        audio_token_id=AUDIO,
        video_token_id=VIDEO,
    )
    config._attn_implementation = "eager"
    model = Gemma4UnifiedForConditionalGeneration(config).eval()
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name != "lm_head.weight":  # tied to embed_tokens
                value.copy_(_random_tensor(name, value.shape, random))
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path, max_shard_size="300KB")
    return Tiny(model, path)


# ------------------------------------------------------------------------------------------------ llama.cpp


@pytest.fixture(scope="session")
def llama_cpp():
    """The module; absent, the test is skipped, or fails where GEMMA_REQUIRE_ALL is set."""
    try:
        import llama_cpp
    except ImportError as error:
        _absent(f"llama-cpp-python is not installed ({error})")
    return llama_cpp


def _absent(what):
    """Skip the test, or fail it where GEMMA_REQUIRE_ALL is set."""
    reason = f"{what}; pip install 'jupyter-gemma[oracle]'"
    pytest.fail(reason) if os.environ.get("GEMMA_REQUIRE_ALL") else pytest.skip(reason)


class Llama:
    """One GGUF in llama.cpp on the CPU: one thread, no flash attention, float32 cache, whole window kept."""

    def __init__(self, api, path, context=256):
        self.api = api
        api.llama_backend_init()
        model_options = api.llama_model_default_params()
        model_options.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), model_options)
        assert self.model, f"llama.cpp refuses {path}"
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = context
        options.n_threads = options.n_threads_batch = 1
        options.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        options.type_k = options.type_v = api.GGML_TYPE_F32
        options.swa_full = True
        self.context = api.llama_init_from_model(self.model, options)
        assert self.context, f"llama.cpp makes no context for {path}"
        self.vocabulary = api.llama_model_get_vocab(self.model)
        self.vocab = api.llama_vocab_n_tokens(self.vocabulary)
        self.length = 0

    def reset(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self.length = 0

    def logits(self, rows, causal=True):
        """Append token ids (a list) or embeddings (float32 [n, hidden]); float32 [n, vocab] of all of them."""
        count, embeddings = len(rows), isinstance(rows, np.ndarray)
        batch = self.api.llama_batch_init(count, rows.shape[1] if embeddings else 0, 1)
        batch.n_tokens = count
        if embeddings:
            rows = np.ascontiguousarray(rows, dtype=np.float32)
            ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        for index in range(count):
            if not embeddings:
                batch.token[index] = rows[index]
            batch.pos[index] = self.length + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        self.api.llama_set_causal_attn(self.context, causal)
        status = self.api.llama_decode(self.context, batch)
        self.api.llama_batch_free(batch)
        assert status == 0, f"llama_decode returned {status}"
        self.length += count
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (count, self.vocab)).copy()

    def tokens(self, text):
        """Ids of ``text``, after <bos>."""
        data = text.encode()
        ids = (self.api.llama_token * (len(data) + 2))()
        count = self.api.llama_tokenize(self.vocabulary, data, len(data), ids, len(ids), True, False)
        return list(ids[:count])

    def text(self, ids):
        buffer, out = ctypes.create_string_buffer(256), b""
        for token in ids:
            size = self.api.llama_token_to_piece(self.vocabulary, int(token), buffer, len(buffer), 0, True)
            out += buffer.raw[:size]
        return out.decode(errors="replace")

    def close(self):
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


@pytest.fixture(scope="session")
def open_llama(llama_cpp):
    """``open_llama(path, context=256) -> Llama``; all are freed at the end."""
    opened = []

    @llama_cpp.llama_log_callback
    def log(level, text, _):
        if level >= 4:  # errors; everything else is chatter
            print(text.decode(errors="replace"), end="")

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))

    def open_(path, context=256):
        opened.append(Llama(llama_cpp, path, context))
        return opened[-1]

    yield open_
    for llama in opened:
        llama.close()


@pytest.fixture(scope="session")
def llama_server(tmp_path_factory):
    """URL of llama-cpp-python's server with the 270M weights."""
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("sse_starlette") is None:
        _absent("llama-cpp-python's server is not installed")
    folder = tmp_path_factory.mktemp("llama")
    path = prepare(
        find_model("gemma3-270m", load_settings({"models_dir": str(folder)}, environ={})), lambda progress: None
    )
    options = ["--host", "127.0.0.1", "--port", "0", "--n_ctx", "512", "--n_threads", "1", "--chat_format", "gemma"]
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(next(path.glob("*.gguf"))), *options]
    log = folder / "log"  # a pipe that nobody reads would fill up and stop it
    with log.open("w") as stream, subprocess.Popen(command, stderr=stream, stdout=stream) as process:
        try:
            deadline = time.monotonic() + 60
            while not (found := re.search(r"running on (http://\S+)", log.read_text())):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield found[1]
        finally:
            process.terminate()
