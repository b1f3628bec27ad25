"""The weights of a packed file as GGUF, so that llama.cpp can compute with the very same ones.

File format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; keys and names are those of ``gemma4`` files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from jupyter_gemma.model.config import AttentionConfig, ModelConfig
from jupyter_gemma.model.gguf import gguf_name, to_blocks
from jupyter_gemma.model.weights import WeightSource

_TYPES = gguf.GGMLQuantizationType
_TOKENS = gguf.TokenType
_KINDS = {"float": _TYPES.F32, "int4": _TYPES.Q4_0, "int8": _TYPES.Q8_0}
_STILL = 1e30  # what the frequency of a pair that does not turn is divided by
_MEDIA = ("vision_embedder.", "embed_vision.", "embed_audio.")


def write_gguf(source: WeightSource, path: Path, tokens: Sequence[str] = ()) -> None:
    """Write the text model of ``source``; the file appears under its name when it is whole.

    ``tokens``: the vocabulary, if it is to have one: characters, and bytes as SentencePiece writes them.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "gemma4")
    _add_keys(writer, source.config)
    _add_tokens(writer, tokens, source.config.ids.bos)
    writer.add_tensor("rope_freqs.weight", _frequency_factors(source.config.attention["full"]))
    for name in source.names():
        if not name.startswith(_MEDIA):
            writer.add_tensor(gguf_name(name), _values(source, name), raw_dtype=_KINDS[source.kind(name)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _add_keys(writer: Any, config: ModelConfig) -> None:
    sliding, full = config.attention["sliding"], config.attention["full"]
    writer.add_block_count(len(config.layers))
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(full.heads)
    writer.add_head_count_kv([config.layer(index).kv_heads for index in range(len(config.layers))])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_sliding_window(sliding.window)
    writer.add_sliding_window_pattern([kind == "sliding" for kind in config.layers])
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(full.head_dim)
    for add in (writer.add_key_length_swa, writer.add_value_length_swa, writer.add_rope_dimension_count_swa):
        add(sliding.head_dim)
    writer.add_rope_freq_base(full.rope_theta)
    writer.add_rope_freq_base_swa(sliding.rope_theta)
    writer.add_final_logit_softcapping(config.logit_softcap)
    writer.add_shared_kv_layers(0)
    writer.add_embedding_length_per_layer_input(0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.ids.bos)
    writer.add_eos_token_id(config.ids.eos[0])


def _add_tokens(writer: Any, tokens: Sequence[str], bos: int) -> None:
    writer.add_tokenizer_model("llama" if tokens else "none")
    if tokens:
        kinds = [_TOKENS.BYTE if token.startswith("<0x") else _TOKENS.NORMAL for token in tokens]
        kinds[bos] = _TOKENS.CONTROL
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * len(tokens))
        writer.add_token_types(kinds)
        writer.add_add_space_prefix(False)


def _frequency_factors(full: AttentionConfig) -> NDArray[np.float32]:
    factors = np.ones(full.head_dim // 2, np.float32)
    factors[full.rotary_pairs :] = _STILL
    return factors


def _values(source: WeightSource, name: str) -> NDArray[Any]:
    value = source.read(name)
    return value.float().numpy() if isinstance(value, Tensor) else to_blocks(value)
