"""A tiny random ``gemma4`` GGUF with its mmproj, in llama.cpp and in ours: the same logits.

The weights are those of the ``tiny`` fixture. llama.cpp gets the same pictures and clips through its own
preprocessing (libmtmd); its logits are taken at every position, also inside pictures and clips.

Tolerances. The layers' errors are independent, so L of them add as sqrt(L); a sum of K products with random signs
neither shrinks nor grows the relative error of its terms, and its own float32 roundings add as sqrt(K) * 2**-24.
They hold for the worst logit relative to the largest, but for rounded activations, whose error is a noise with
rare outliers: there the root mean square counts.
"""

import ctypes
import math

import numpy as np
import pytest
import torch

from jupyter_gemma.model import checkpoint

LAYERS = 8
CASES = ["text", "audio", "image", "two images", "image and audio", "video"]

# float32 on both sides: a soft token of a picture is a sum of 6912 terms; then about 12 roundings a layer (norms,
# products, softmax, sums), where the longest sum has 128 terms.
SOFT_TOKEN = 2**-24 * math.sqrt(6912)
FLOAT32 = SOFT_TOKEN + 2**-24 * math.sqrt(12 * LAYERS) * math.sqrt(128)
# llama.cpp reads GELU from a table of fp16: argument and result have 11 bits, once a layer.
GELU_TABLE = 2 * 2**-11 * math.sqrt(LAYERS)
# With Q4_0 and Q8_0 weights llama.cpp also rounds each 32 activations to 8 bits of their peak, which is about two
# standard deviations: 2 / (254 * sqrt(3)) of them is lost before each of the 7 products of a layer and the head. Those
# of queries and keys count twice: attention turns an error of a score into one of its size, and scores deviate by 2.
ROUNDED_ACTIVATIONS = GELU_TABLE + 2 / (254 * math.sqrt(3)) * math.sqrt((5 + 2 * 2**2) * LAYERS + 1)

BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_feedforward_layernorm": "post_ffw_norm",
}
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|image>", "<image|>", "<|image|>"]
SPECIAL += ["<|audio>", "<audio|>", "<|audio|>", "<|video|>"]


# ------------------------------------------------------------------------------------------------ GGUF files


def text_tensors(tensors):
    """The 12B's names -> GGUF's."""
    prefix = "model.language_model."
    yield "token_embd.weight", tensors[f"{prefix}embed_tokens.weight"]
    yield "output_norm.weight", tensors[f"{prefix}norm.weight"]
    # Proportional RoPE as ggml does it: frequencies of pairs that do not turn are divided by 1e30.
    yield "rope_freqs.weight", np.array([1.0] * 4 + [1e30] * 12, dtype=np.float32)
    for layer in range(LAYERS):
        yield f"blk.{layer}.layer_output_scale.weight", tensors[f"{prefix}layers.{layer}.layer_scalar"]
        for ours, theirs in BLOCK_NAMES.items():
            name = f"{prefix}layers.{layer}.{ours}.weight"
            if name in tensors:
                yield f"blk.{layer}.{theirs}.weight", tensors[name]


def mmproj_tensors(tensors):
    """The patch's 6912 inputs go from (height, width, channel) to (channel, height, width)."""

    def channel_first(values):
        return values.reshape(*values.shape[:-1], 48 * 48, 3).swapaxes(-1, -2).reshape(values.shape)

    vision = "model.vision_embedder."
    yield "v.patch_embd.weight", channel_first(tensors[f"{vision}patch_dense.weight"])
    yield "v.patch_embd.bias", tensors[f"{vision}patch_dense.bias"]
    for kind in ("weight", "bias"):
        yield f"v.patch_norm.1.{kind}", channel_first(tensors[f"{vision}patch_ln1.{kind}"])
        yield f"v.patch_norm.2.{kind}", tensors[f"{vision}patch_ln2.{kind}"]
        yield f"v.patch_norm.3.{kind}", tensors[f"{vision}pos_norm.{kind}"]
    yield "v.position_embd.weight", tensors[f"{vision}pos_embedding"].swapaxes(0, 1)
    yield "mm.input_projection.weight", tensors["model.embed_vision.embedding_projection.weight"]
    yield "mm.a.input_projection.weight", tensors["model.embed_audio.embedding_projection.weight"]


def add_text_keys(writer, config):
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_block_count(LAYERS)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([2 if kind else 1 for kind in sliding])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(sliding)
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(32)
    for add in (writer.add_key_length_swa, writer.add_value_length_swa, writer.add_rope_dimension_count_swa):
        add(16)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_freq_base_swa(1e4)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)


def add_vocabulary(writer, size):
    """Special tokens, the 256 bytes, and letters with merges up to ``size``."""
    letters = "\u2581abcdefghijklmnopqrstuvwxyz"
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    kinds = [3] * len(SPECIAL) + [6] * 256 + [1] * (size - 256 - len(SPECIAL))
    pairs = [a + b for a in "abcdefgh" for b in "aeiou"][: size - len(tokens)]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens + pairs)
    writer.add_token_scores([0.0] * size)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{a} {b}" for a, b in pairs])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def add_mmproj_keys(writer, config):
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_has_audio_encoder(True)
    for part, projector, width in (("vision", "gemma4uv", config.hidden_size), ("audio", "gemma4ua", 640)):
        writer.add_string(f"clip.{part}.projector_type", projector)
        writer.add_uint32(f"clip.{part}.embedding_length", width)
        writer.add_uint32(f"clip.{part}.projection_dim", config.hidden_size)
        for unused in ("feed_forward_length", "block_count", "attention.head_count"):
            writer.add_uint32(f"clip.{part}.{unused}", 0)
        writer.add_float32(f"clip.{part}.attention.layer_norm_epsilon", 1e-6)
    writer.add_uint32("clip.vision.image_size", 224)
    writer.add_uint32("clip.vision.patch_size", 16)
    writer.add_array("clip.vision.image_mean", [0.0, 0.0, 0.0])
    writer.add_array("clip.vision.image_std", [1.0, 1.0, 1.0])
    writer.add_uint32("clip.audio.num_mel_bins", 128)


def write(writer, tensors, kind="F32"):
    """Finish the file; matrices of the decoder are stored as ``kind``."""
    from gguf import GGMLQuantizationType, quants

    for name, value in tensors:
        value = np.ascontiguousarray(value)
        wanted = GGMLQuantizationType[kind if value.ndim == 2 else "F32"]
        writer.add_tensor(name, quants.quantize(value, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def without_mlp(tensors):
    """Gates of zero: the MLP gives zero exactly, and llama.cpp's table of GELU plays no part."""
    return {name: np.zeros_like(value) if "gate_proj" in name else value for name, value in tensors.items()}


def rounded(tensors, kind):
    """What a file of ``kind`` holds, as float32."""
    from gguf import GGMLQuantizationType, quants

    type_ = GGMLQuantizationType[kind]
    for name, value in tensors:
        yield name, quants.dequantize(quants.quantize(value, type_), type_) if value.ndim == 2 else value


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """Folders with ``model.gguf`` and ``mmproj.gguf``, by what the decoder's matrices are stored as."""
    import gguf

    def folder(tensors, kind="F32"):
        path = tmp_path_factory.mktemp("gguf")
        writer = gguf.GGUFWriter(path / "model.gguf", "gemma4")
        add_text_keys(writer, tiny.model.config.text_config)
        add_vocabulary(writer, tiny.model.config.text_config.vocab_size)
        write(writer, tensors, kind)
        writer = gguf.GGUFWriter(path / "mmproj.gguf", "clip")
        add_mmproj_keys(writer, tiny.model.config.text_config)
        write(writer, mmproj_tensors(tiny.tensors))
        return path

    made = {"F32": folder(text_tensors(tiny.tensors)), "no MLP": folder(text_tensors(without_mlp(tiny.tensors)))}
    for kind in ("Q8_0", "Q4_0"):
        made[kind] = folder(text_tensors(tiny.tensors), kind)
        made[f"{kind} as F32"] = folder(rounded(text_tensors(tiny.tensors), kind))
    return made


@pytest.fixture(scope="module")
def ours(folders):
    """Our models, by folder; float32 throughout, plain torch products."""
    loaded = {}

    def load(kind):
        if kind not in loaded:
            loaded[kind] = checkpoint.load(folders[kind], quantization="none", device="cpu").model
        return loaded[kind]

    return load


# ------------------------------------------------------------------------------------------------ llama.cpp


class Encoder:
    """libmtmd: pictures and clips to soft tokens."""

    def __init__(self, path, llama):
        from llama_cpp import mtmd_cpp

        self.api, self.width = mtmd_cpp, llama.api.llama_model_n_embd(llama.model)
        options = mtmd_cpp.mtmd_context_params_default()
        options.use_gpu = options.warmup = False
        options.n_threads = 1
        options.flash_attn_type = llama.api.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # Between these budgets a picture whose sides are multiples of 48 keeps its size.
        options.image_min_tokens, options.image_max_tokens = 1, 64
        self.context = mtmd_cpp.mtmd_init_from_file(str(path).encode(), llama.model, options)
        assert self.context, f"libmtmd refuses {path}"

    def __call__(self, medium):
        """Picture or Clip -> float32 [soft tokens, hidden]."""
        api, bitmap, chunks = self.api, self._bitmap(medium), self.api.mtmd_input_chunks_init()
        marker = api.mtmd_default_marker()
        text = api.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        bitmaps = ctypes.cast((ctypes.c_void_p * 1)(bitmap), ctypes.POINTER(ctypes.c_void_p))
        assert api.mtmd_tokenize(self.context, chunks, ctypes.byref(text), bitmaps, 1) == 0
        all_chunks = [api.mtmd_input_chunks_get(chunks, index) for index in range(api.mtmd_input_chunks_size(chunks))]
        (chunk,) = [chunk for chunk in all_chunks if api.mtmd_input_chunk_get_type(chunk) != 0]
        count = api.mtmd_input_chunk_get_n_tokens(chunk)
        assert count == len(medium), f"libmtmd makes {count} soft tokens of {len(medium)}"
        assert api.mtmd_encode_chunk(self.context, chunk) == 0
        rows = np.ctypeslib.as_array(api.mtmd_get_output_embd(self.context), (count, self.width)).copy()
        api.mtmd_input_chunks_free(chunks)
        api.mtmd_bitmap_free(bitmap)
        return rows

    def _bitmap(self, medium):
        if hasattr(medium, "pixels"):
            height, width, _ = medium.pixels.shape
            values = medium.pixels.contiguous().numpy()
            return self.api.mtmd_bitmap_init(width, height, values.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
        values = medium.samples.contiguous().numpy()
        return self.api.mtmd_bitmap_init_from_audio(values.size, values.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))

    def close(self):
        self.api.mtmd_free(self.context)


@pytest.fixture(scope="module")
def theirs(folders, open_llama):
    """llama.cpp's decoders, by folder."""
    opened = {}

    def open_(kind):
        if kind not in opened:
            opened[kind] = open_llama(folders[kind] / "model.gguf")
        return opened[kind]

    return open_


@pytest.fixture(scope="module")
def soft_rows(cases, folders, theirs):
    """llama.cpp's soft tokens of every picture and clip of the cases, by identity."""
    from llama_cpp import mtmd_cpp

    # Bound to a name: the library keeps the address for as long as it logs.
    silent = theirs("F32").api.llama_log_callback(lambda level, text, data: None)
    mtmd_cpp.mtmd_helper_log_set(silent, ctypes.c_void_p(0))
    encoder = Encoder(folders["F32"] / "mmproj.gguf", theirs("F32"))
    media = [medium for case in cases.values() for medium in (*case.pictures, *case.clips)]
    rows = {id(medium): encoder(medium) for medium in media}
    encoder.close()
    return rows


def llama_logits(llama, case, soft_rows):
    """float32 [T, vocab]. A picture goes in as one batch without causal mask, as libmtmd's own helper does it."""
    llama.reset()
    parts = []
    for piece in case.pieces:
        if isinstance(piece, list):
            parts.append(llama.logits(piece))
        else:
            parts.append(llama.logits(soft_rows[id(piece)], causal=not hasattr(piece, "pixels")))
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("name", CASES[1:])
def test_soft_tokens(name, cases, ours, soft_rows, assert_close):
    case, prompt = cases[name], cases[name].prompt
    with torch.no_grad():
        rows = ours("F32").embed(prompt)
    for soft, medium in zip(prompt.soft, (piece for piece in case.pieces if not isinstance(piece, list)), strict=True):
        mine = rows[soft.offset : soft.offset + soft.count]
        assert_close(mine, soft_rows[id(medium)], SOFT_TOKEN, f"{name}, soft tokens at {soft.offset}")


@pytest.mark.parametrize(
    ("kind", "reference", "tolerance"),
    [
        ("no MLP", "no MLP", FLOAT32),
        ("F32", "F32", GELU_TABLE),
        ("Q8_0", "Q8_0 as F32", GELU_TABLE),
        ("Q4_0", "Q4_0 as F32", GELU_TABLE),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_logits(name, kind, reference, tolerance, cases, ours, theirs, soft_rows, assert_close):
    case = cases[name]
    expected = llama_logits(theirs(reference), case, soft_rows)
    assert expected.std() > 1, "the oracle says nothing: its logits are flat"
    with torch.no_grad():
        assert_close(ours(kind).logits_of(case.prompt), expected, tolerance, f"{name}, {kind} against {reference}")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", CASES)
def test_logits_where_llama_rounds_its_activations_too(name, kind, cases, ours, theirs, soft_rows):
    case = cases[name]
    expected = llama_logits(theirs(kind), case, soft_rows)
    with torch.no_grad():
        difference = ours(kind).logits_of(case.prompt).numpy() - expected
    noise = root_mean_square(difference) / root_mean_square(expected)
    position, token = np.unravel_index(np.abs(difference).argmax(), difference.shape)
    message = (
        f"{name}, {kind}: noise {noise:.3g} (allowed {ROUNDED_ACTIVATIONS:.3g}), most at {position}, token {token}"
    )
    print(message)
    assert noise <= ROUNDED_ACTIVATIONS, message


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
