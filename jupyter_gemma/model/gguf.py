"""GGUF files of llama.cpp: ``gemma4`` with its mmproj (pictures and sound), and ``gemma3`` text models.

File format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; keys, tensor names and the order of values
are those that llama.cpp's converter writes. Q4_0 and Q8_0 are moved into ``quant.Quantized`` bit by bit; all other
types are expanded by the ``gguf`` library. Data is mapped only while a tensor is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jupyter_gemma.errors import BadCheckpoint
from jupyter_gemma.model.config import AttentionConfig, AudioConfig, ModelConfig, SpecialIds, VisionConfig
from jupyter_gemma.model.gguf_head import Entry, read_head
from jupyter_gemma.model.ops import WeightKind
from jupyter_gemma.model.quant import Quantized, from_bytes, from_nibbles, to_rows
from jupyter_gemma.model.weights import ALL_ROWS, FETCH_AGAIN, check_shapes, digest_of_files, quantisable

_TYPES = gguf.GGMLQuantizationType
_KINDS: Mapping[int, WeightKind] = {_TYPES.Q4_0: "int4", _TYPES.Q8_0: "int8"}
_WHOLE_TYPES = (_TYPES.F32, _TYPES.F16, _TYPES.BF16)

_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "layer_scalar": "layer_output_scale.weight",
}
_OTHER_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "vision_embedder.patch_ln1.weight": "v.patch_norm.1.weight",
    "vision_embedder.patch_ln1.bias": "v.patch_norm.1.bias",
    "vision_embedder.patch_dense.weight": "v.patch_embd.weight",
    "vision_embedder.patch_dense.bias": "v.patch_embd.bias",
    "vision_embedder.patch_ln2.weight": "v.patch_norm.2.weight",
    "vision_embedder.patch_ln2.bias": "v.patch_norm.2.bias",
    "vision_embedder.pos_embedding": "v.position_embd.weight",
    "vision_embedder.pos_norm.weight": "v.patch_norm.3.weight",
    "vision_embedder.pos_norm.bias": "v.patch_norm.3.bias",
    "embed_vision.embedding_projection.weight": "mm.input_projection.weight",
    "embed_audio.embedding_projection.weight": "mm.a.input_projection.weight",
}
_OUR_LAYER_NAMES = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
_OUR_OTHER_NAMES = {theirs: ours for ours, theirs in _OTHER_NAMES.items()}
_POSITIONS = "vision_embedder.pos_embedding"
# The converter sorts the values of a patch by channel, then height, then width, in all tensors that see them raw.
_BY_CHANNEL = tuple(f"vision_embedder.{part}" for part in ("patch_dense.weight", "patch_ln1.weight", "patch_ln1.bias"))

_ROPE_FREQUENCIES = "rope_freqs.weight"
_FULL_EVERY = 6  # Gemma 3: five sliding layers, then a full one; its files do not say so.
_SLIDING_THETA = 10000.0  # nor this
_LAYERS_OF_27B = 62
_TURN_ENDS = ("<turn|>", "<|tool_response>", "<end_of_turn>")


class _File:
    """A file's head, with look-ups that name what is missing."""

    def __init__(self, path: Path) -> None:
        head = read_head(path)
        self.path, self.tensors, self._metadata = path, head.tensors, head.metadata
        self.architecture = str(self.get("general.architecture"))

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        return self._metadata.get(key, default)

    def need(self, key: str) -> Any:
        """The same for a key that must be there."""
        if key not in self._metadata:
            raise BadCheckpoint(f"{self.path} lacks the key {key}.", "Convert the model again with a newer llama.cpp.")
        return self._metadata[key]

    def width(self, key: str, dimension: int) -> int:
        """The size of one dimension of a tensor that must be there."""
        if key not in self.tensors:
            raise BadCheckpoint(f"{self.path} lacks the tensor {key}.", FETCH_AGAIN)
        return self.tensors[key].shape[dimension]

    def ids_of(self, texts: Sequence[str]) -> dict[str, int]:
        """Token ids of those ``texts`` that are in the vocabulary."""
        tokens = self.get("tokenizer.ggml.tokens", [])
        return {token: index for index, token in enumerate(tokens) if token in texts}


class GgufSource:
    """One text model, and optionally its projector file for pictures and sound."""

    config: ModelConfig

    def __init__(self, paths: Sequence[Path]) -> None:
        text, projector = _sort([_File(path) for path in paths])
        self._digest = digest_of_files(paths)
        self.config = _config(text, projector)
        parts = [text] if projector is None else [text, projector]
        self._entries = {
            _our_name(key): entry for part in parts for key, entry in part.tensors.items() if key != _ROPE_FREQUENCIES
        }
        where = " and ".join(str(part.path) for part in parts)
        check_shapes(self.names(), self.config, where, label=gguf_name)

    def names(self) -> Mapping[str, tuple[int, ...]]:
        """In the order of the files."""
        return {name: _logical_shape(name, entry.shape) for name, entry in self._entries.items()}

    def kind(self, name: str) -> WeightKind:
        """int4 for Q4_0 and int8 for Q8_0, where the model can hold that; else float."""
        entry = self._entries[name]
        return _KINDS.get(entry.type, "float") if quantisable(name, entry.shape) else "float"

    def lossy(self, name: str) -> bool:
        """All but F32, F16 and BF16."""
        return self._entries[name].type not in _WHOLE_TYPES

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor | Quantized:
        """A copy. Floats come as float32."""
        entry = self._entries[name]
        if self.kind(name) != "float":
            return repack(entry.rows()[rows], entry.type)
        if len(entry.shape) == 2:
            return _in_our_order(name, _expand(entry, entry.rows()[rows]))
        return _in_our_order(name, _expand(entry, entry.rows()).view(entry.shape))[rows]

    def digest(self) -> str:
        """From names, sizes and times of the files."""
        return self._digest


def repack(rows: NDArray[np.uint8], type_: gguf.GGMLQuantizationType) -> Quantized:
    """Blocks of Q4_0 (fp16 scale, 16 bytes) or Q8_0 (fp16 scale, 32 bytes), uint8 [N, bytes], without loss."""
    size = 18 if type_ == _TYPES.Q4_0 else 34
    blocks = rows.reshape(len(rows), -1, size)
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    packed = np.ascontiguousarray(blocks[..., 2:])
    build = from_nibbles if type_ == _TYPES.Q4_0 else from_bytes
    return build(torch.from_numpy(packed), torch.from_numpy(scale))


def to_blocks(weight: Quantized) -> NDArray[np.uint8]:
    """The inverse of :func:`repack`: rows of blocks as a file holds them, uint8 [N, bytes]."""
    packed, scale = to_rows(weight)
    blocks = torch.cat((scale.unsqueeze(-1).view(torch.uint8), packed), dim=-1)
    return np.asarray(blocks.flatten(1).numpy())


def _expand(entry: Entry, rows: NDArray[np.uint8]) -> Tensor:
    try:
        return torch.from_numpy(np.array(gguf.quants.dequantize(rows, entry.type), np.float32))
    except NotImplementedError:
        raise BadCheckpoint(
            f"The tensor {entry.key} in {entry.file} has the type {entry.type.name}, which cannot be read.",
            "Use a GGUF of another quantisation, such as Q4_0 or Q4_K_M.",
        ) from None


def _our_name(key: str) -> str:
    found = re.fullmatch(r"blk\.(\d+)\.(.+)", key)
    if found is not None and found[2] in _OUR_LAYER_NAMES:
        return f"layers.{found[1]}.{_OUR_LAYER_NAMES[found[2]]}"
    return _OUR_OTHER_NAMES.get(key, key)


def gguf_name(name: str) -> str:
    """What such a file calls the weight that we call ``name``."""
    found = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    return _OTHER_NAMES.get(name, name) if found is None else f"blk.{found[1]}.{_LAYER_NAMES[found[2]]}"


def _logical_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The converter puts the axis first, we the position, as in the original checkpoint."""
    return (shape[1], shape[0], *shape[2:]) if name == _POSITIONS and len(shape) == 3 else shape


def _in_our_order(name: str, value: Tensor) -> Tensor:
    if name == _POSITIONS:
        return value.transpose(0, 1).contiguous()
    if name not in _BY_CHANNEL:
        return value
    patch = math.isqrt(value.shape[-1] // 3)
    lead = value.shape[:-1]
    return value.view(*lead, 3, patch, patch).movedim(-3, -1).reshape(*lead, -1)


def _sort(files: Sequence[_File]) -> tuple[_File, _File | None]:
    """The text model and its projector; which is which stands in the files, not in their names."""
    projectors = [file for file in files if file.architecture == "clip"]
    texts = [file for file in files if file.architecture != "clip"]
    if len(texts) != 1 or len(projectors) > 1:
        names = ", ".join(str(file.path) for file in files)
        raise BadCheckpoint(
            f"Expected one text model and at most one projector among: {names}.",
            "Keep each model in a folder of its own, or give the file.",
        )
    return texts[0], projectors[0] if projectors else None


def _config(text: _File, projector: _File | None) -> ModelConfig:
    if text.architecture == "gemma4":
        return _gemma4(text, projector)
    if text.architecture == "gemma3":
        if projector is not None:
            raise BadCheckpoint(
                f"Pictures are not supported for gemma3 ({projector.path}).", "Use the text model without its mmproj."
            )
        return _gemma3(text)
    raise BadCheckpoint(
        f"The architecture {text.architecture!r} of {text.path} is not supported.", "Use a gemma4 or gemma3 GGUF."
    )


def _gemma4(text: _File, projector: _File | None) -> ModelConfig:
    for key in ("attention.shared_kv_layers", "embedding_length_per_layer_input", "expert_count"):
        if text.get(f"gemma4.{key}"):
            raise BadCheckpoint(
                f"{text.path} uses {key}, which this decoder does not have.", "Use a GGUF of Gemma 4 12B."
            )
    sliding = [bool(flag) for flag in text.need("gemma4.attention.sliding_window_pattern")]
    layers = tuple("sliding" if flag else "full" for flag in sliding)
    vision, audio = _vision(projector), _audio(projector)
    return ModelConfig(
        architecture="gemma4_unified",
        layers=layers,
        attention={kind: _gemma4_attention(text, layers, kind) for kind in dict.fromkeys(layers)},
        attention_scale=1.0,
        value_norm=True,
        layer_scalar="blk.0.layer_output_scale.weight" in text.tensors,
        ids=_ids(text, vision is not None, audio is not None),
        vision=vision,
        audio=audio,
        bidirectional_images=vision is not None,
        **_common(text),
    )


def _common(text: _File) -> dict[str, Any]:
    """What both architectures state alike."""
    prefix = text.architecture
    return {
        "vocab_size": text.width("token_embd.weight", 0),
        "hidden_size": text.need(f"{prefix}.embedding_length"),
        "intermediate_size": text.need(f"{prefix}.feed_forward_length"),
        "norm_eps": text.need(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "logit_softcap": text.get(f"{prefix}.final_logit_softcapping"),
        "max_positions": text.need(f"{prefix}.context_length"),
    }


def _gemma4_attention(text: _File, layers: tuple[str, ...], kind: str) -> AttentionConfig:
    first = layers.index(kind)

    def of_layer(key: str) -> int:
        value = text.need(key)
        return int(value[first] if isinstance(value, list) else value)

    full = kind == "full"
    suffix = "" if full else "_swa"
    head_dim = text.need(f"gemma4.attention.key_length{suffix}")
    return AttentionConfig(
        heads=of_layer("gemma4.attention.head_count"),
        kv_heads=of_layer("gemma4.attention.head_count_kv"),
        head_dim=head_dim,
        window=None if full else text.need("gemma4.attention.sliding_window"),
        rope_theta=text.need(f"gemma4.rope.freq_base{suffix}"),
        rotary_pairs=_rotary_pairs(text, head_dim) if full else head_dim // 2,
        value_from_key=f"blk.{first}.attn_v.weight" not in text.tensors,
    )


def _rotary_pairs(text: _File, head_dim: int) -> int:
    """Frequencies are divided by this tensor: 1 where a pair turns, huge where it stands still."""
    entry = text.tensors.get(_ROPE_FREQUENCIES)
    if entry is None:
        return head_dim // 2
    factors = _expand(entry, entry.rows())
    pairs = int((factors == 1).sum())
    if not bool((factors[0, :pairs] == 1).all() and (factors[0, pairs:] > 1e20).all()):
        raise BadCheckpoint(f"The tensor {entry.key} in {text.path} scales frequencies.", "Use a GGUF of Gemma 4 12B.")
    return pairs


def _gemma3(text: _File) -> ModelConfig:
    count = text.need("gemma3.block_count")
    window = text.get("gemma3.attention.sliding_window")
    every = _FULL_EVERY if window else 1
    heads, head_dim = text.need("gemma3.attention.head_count"), text.need("gemma3.attention.key_length")
    shared = {
        "heads": heads,
        "kv_heads": text.need("gemma3.attention.head_count_kv"),
        "head_dim": head_dim,
        "rotary_pairs": head_dim // 2,
    }
    theta = text.need("gemma3.rope.freq_base")
    factor = text.get("gemma3.rope.scaling.factor", 1.0)
    sliding_theta = text.get("gemma3.rope.freq_base_swa", _SLIDING_THETA)
    # Only 27B scales its queries by something other than the head size.
    scaled_by = text.need("gemma3.embedding_length") // heads if count == _LAYERS_OF_27B else head_dim
    return ModelConfig(
        architecture="gemma3_text",
        layers=tuple("full" if (index + 1) % every == 0 else "sliding" for index in range(count)),
        attention={
            "sliding": AttentionConfig(**shared, window=window or None, rope_theta=sliding_theta),
            "full": AttentionConfig(**shared, window=None, rope_theta=theta, rope_factor=factor),
        },
        attention_scale=scaled_by**-0.5,
        value_norm=False,
        layer_scalar=False,
        ids=_ids(text, images=False, sounds=False),
        **_common(text),
    )


def _ids(text: _File, images: bool, sounds: bool) -> SpecialIds:
    """Ids that the file states, and those known by their text. A turn ends with any of the ends present."""
    image = {"image": "<|image|>", "image_begin": "<|image>", "image_end": "<image|>"} if images else {}
    sound = {"audio": "<|audio|>", "audio_begin": "<|audio>", "audio_end": "<audio|>"} if sounds else {}
    media = {**image, **sound}
    found = text.ids_of([*_TURN_ENDS, *media.values()])
    for token in media.values():
        if token not in found:
            raise BadCheckpoint(f"The vocabulary of {text.path} lacks {token}.", "Remove the mmproj to use text only.")
    stated = (text.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ends = [*(id_ for id_ in stated if id_ is not None), *(found[end] for end in _TURN_ENDS if end in found)]
    return SpecialIds(
        bos=text.need("tokenizer.ggml.bos_token_id"),
        eos=tuple(dict.fromkeys(ends)),
        pad=text.get("tokenizer.ggml.padding_token_id", 0),
        **{name: found[token] for name, token in media.items()},
    )


def _projector_type(projector: _File | None, modality: str, supported: str) -> bool:
    """Whether the projector has this modality, in the form that this decoder knows."""
    found = None if projector is None else projector.get(f"clip.{modality}.projector_type")
    if projector is not None and found not in (None, supported):
        raise BadCheckpoint(
            f"The {modality} projector of {projector.path} is of type {found!r}, not {supported!r}.",
            "Use the mmproj of Gemma 4 12B, or remove it to use text only.",
        )
    return found is not None


def _vision(projector: _File | None) -> VisionConfig | None:
    if projector is None or not _projector_type(projector, "vision", "gemma4uv"):
        return None
    values = projector.width("v.patch_embd.weight", -1)
    return VisionConfig(
        patch=math.isqrt(values // 3),
        positions=projector.width("v.position_embd.weight", -2),
        embed_dim=projector.width("v.patch_embd.weight", 0),
        norm_eps=projector.get("clip.vision.attention.layer_norm_epsilon", 1e-6),
    )


def _audio(projector: _File | None) -> AudioConfig | None:
    """The converter writes a wrong epsilon for sound; llama.cpp ignores it too and takes 1e-6."""
    if projector is None or not _projector_type(projector, "audio", "gemma4ua"):
        return None
    return AudioConfig(frame=projector.width("mm.a.input_projection.weight", -1))
