"""The architecture as data, read from a checkpoint's own ``config.json``.

One decoder serves ``gemma4_unified`` and the Gemma 3 text models; everything in which they differ is a field
here. Nothing is assumed that a checkpoint states itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from jupyter_gemma.errors import BadCheckpoint

ARCHITECTURES = ("gemma4_unified", "gemma3_text")
#: Drafts for a Gemma 4 Unified model, and is nothing without it (see ``drafter``).
DRAFTER = "gemma4_unified_assistant"


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """One kind of attention layer.

    ``window`` counts the query itself; None: a full layer. ``rotary_pairs`` of the ``head_dim // 2`` pairs
    rotate, the frequency exponent always runs over ``head_dim`` ("proportional" RoPE, Gemma 4). With
    ``value_from_key`` there is no v_proj: V is the raw output of k_proj.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    rope_theta: float
    rotary_pairs: int
    rope_factor: float = 1.0
    value_from_key: bool = False


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Raw pictures: square patches of ``patch`` pixels; positions 0 .. ``positions``-1 on each axis."""

    patch: int
    positions: int
    embed_dim: int
    norm_eps: float = 1e-6

    @property
    def patch_values(self) -> int:
        """Values of one flattened RGB patch."""
        return self.patch * self.patch * 3


@dataclass(frozen=True, slots=True)
class AudioConfig:
    """Raw sound: frames of ``frame`` samples, one soft token each."""

    frame: int
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Token ids with a meaning to the model. Media ids are None where the modality is absent."""

    bos: int
    eos: tuple[int, ...]
    pad: int
    image: int | None = None
    image_begin: int | None = None
    image_end: int | None = None
    audio: int | None = None
    audio_begin: int | None = None
    audio_end: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model. ``layers[i]`` names the kind of layer i: "sliding" or "full", keys of ``attention``.

    ``backbone_size``: of a drafter, the hidden size of the model it drafts for; else None.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: tuple[str, ...]
    attention: Mapping[str, AttentionConfig]
    norm_eps: float
    attention_scale: float
    value_norm: bool
    layer_scalar: bool
    logit_softcap: float | None
    max_positions: int
    ids: SpecialIds
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    bidirectional_images: bool = False
    backbone_size: int | None = None

    def layer(self, index: int) -> AttentionConfig:
        """The attention of layer ``index``."""
        return self.attention[self.layers[index]]


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a Hugging Face ``config.json`` (``gemma4_unified``, its drafter, or ``gemma3_text``).

    Raises:
        BadCheckpoint: another architecture, a feature this decoder does not have, or a missing key (named).
    """
    kind = raw.get("model_type")
    try:
        if kind == "gemma4_unified":
            return _gemma4(raw)
        if kind == "gemma3_text":
            return _gemma3(raw)
        if kind == DRAFTER:
            return _drafter(raw)
    except KeyError as error:
        raise BadCheckpoint(
            f"config.json of this {kind} checkpoint lacks {error}.", "Fetch the checkpoint again."
        ) from None
    raise BadCheckpoint(
        f"The architecture {kind!r} is not supported.", f"Use a checkpoint of one of: {', '.join(ARCHITECTURES)}."
    )


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _gemma4(raw: Mapping[str, Any]) -> ModelConfig:
    text = raw["text_config"]
    _refuse_unknown_features(text)
    return ModelConfig(
        architecture="gemma4_unified",
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        layers=tuple(name.removesuffix("_attention") for name in text["layer_types"]),
        attention={"sliding": _gemma4_sliding(text), "full": _gemma4_full(text)},
        norm_eps=text["rms_norm_eps"],
        attention_scale=1.0,
        value_norm=True,
        layer_scalar=True,
        logit_softcap=text.get("final_logit_softcapping"),
        max_positions=text["max_position_embeddings"],
        ids=_gemma4_ids(raw),
        vision=_vision(raw.get("vision_config")),
        audio=_audio(raw.get("audio_config")),
        bidirectional_images=text.get("use_bidirectional_attention") == "vision",
    )


def _drafter(raw: Mapping[str, Any]) -> ModelConfig:
    if raw.get("use_ordered_embeddings"):
        raise BadCheckpoint(
            "This drafter finds its tokens by centroids, which this decoder does not have.",
            "Use the drafter of a Gemma 4 Unified model such as google/gemma-4-12B-it-assistant.",
        )
    # All its layers share keys and values: with the model it drafts for.
    text = {**raw["text_config"], "num_kv_shared_layers": 0}
    config = _gemma4({**raw, "text_config": text})
    return replace(config, architecture=DRAFTER, logit_softcap=None, backbone_size=raw["backbone_hidden_size"])


def _refuse_unknown_features(text: Mapping[str, Any]) -> None:
    """Features of other Gemma 4 members: loading them as if absent would give wrong answers silently."""
    for key in (
        "num_kv_shared_layers",
        "use_double_wide_mlp",
        "hidden_size_per_layer_input",
        "enable_moe_block",
        "attention_bias",
    ):
        if text.get(key):
            raise BadCheckpoint(
                f"This checkpoint uses {key}={text[key]}, which this decoder does not have.",
                "Use a Gemma 4 Unified checkpoint such as google/gemma-4-12B-it.",
            )


def _gemma4_sliding(text: Mapping[str, Any]) -> AttentionConfig:
    return AttentionConfig(
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["head_dim"],
        window=text["sliding_window"],
        rope_theta=text["rope_parameters"]["sliding_attention"]["rope_theta"],
        rotary_pairs=text["head_dim"] // 2,
    )


def _gemma4_full(text: Mapping[str, Any]) -> AttentionConfig:
    rope = text["rope_parameters"]["full_attention"]
    own = _full_layer_overrides(text)
    head_dim = text.get("global_head_dim") or own.get("head_dim") or text["head_dim"]
    shared = bool(text.get("attention_k_eq_v"))
    kv_heads = (text.get("num_global_key_value_heads") if shared else None) or own.get("num_key_value_heads")
    return AttentionConfig(
        heads=text["num_attention_heads"],
        kv_heads=kv_heads or text["num_key_value_heads"],
        head_dim=head_dim,
        window=None,
        rope_theta=rope["rope_theta"],
        rotary_pairs=int(rope.get("partial_rotary_factor", 1.0) * head_dim // 2),
        value_from_key=shared,
    )


def _full_layer_overrides(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5.23 writes the full layers' sizes layer by layer instead of under their global names."""
    per_layer: Mapping[str, Mapping[str, Any]] = text.get("per_layer_config") or {}
    full = (str(index) for index, kind in enumerate(text["layer_types"]) if kind == "full_attention")
    return per_layer.get(next(full, ""), {})


def _gemma4_ids(raw: Mapping[str, Any]) -> SpecialIds:
    text = raw["text_config"]
    return SpecialIds(
        bos=text["bos_token_id"],
        eos=_ids(text["eos_token_id"]),
        pad=text["pad_token_id"],
        image=raw.get("image_token_id"),
        image_begin=raw.get("boi_token_id"),
        image_end=raw.get("eoi_token_id"),
        audio=raw.get("audio_token_id"),
        audio_begin=raw.get("boa_token_id"),
        audio_end=raw.get("eoa_token_index", raw.get("eoa_token_id")),
    )


def _vision(raw: Mapping[str, Any] | None) -> VisionConfig | None:
    if raw is None:
        return None
    return VisionConfig(
        patch=raw["patch_size"] * raw["pooling_kernel_size"],
        positions=raw["mm_posemb_size"],
        embed_dim=raw["mm_embed_dim"],
        norm_eps=raw["rms_norm_eps"],
    )


def _audio(raw: Mapping[str, Any] | None) -> AudioConfig | None:
    return None if raw is None else AudioConfig(frame=raw["audio_embed_dim"], norm_eps=raw["rms_norm_eps"])


def _gemma3(raw: Mapping[str, Any]) -> ModelConfig:
    ropes = _gemma3_ropes(raw)
    shared = {"heads": raw["num_attention_heads"], "kv_heads": raw["num_key_value_heads"], "head_dim": raw["head_dim"]}
    pairs = raw["head_dim"] // 2
    return ModelConfig(
        architecture="gemma3_text",
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        layers=tuple(name.removesuffix("_attention") for name in raw["layer_types"]),
        attention={
            "sliding": AttentionConfig(
                **shared, window=raw["sliding_window"], rope_theta=ropes["sliding"][0], rotary_pairs=pairs
            ),
            "full": AttentionConfig(
                **shared, window=None, rope_theta=ropes["full"][0], rotary_pairs=pairs, rope_factor=ropes["full"][1]
            ),
        },
        norm_eps=raw["rms_norm_eps"],
        attention_scale=raw["query_pre_attn_scalar"] ** -0.5,
        value_norm=False,
        layer_scalar=False,
        logit_softcap=raw.get("final_logit_softcapping"),
        max_positions=raw["max_position_embeddings"],
        ids=SpecialIds(bos=raw["bos_token_id"], eos=_ids(raw["eos_token_id"]), pad=raw["pad_token_id"]),
    )


def _gemma3_ropes(raw: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(theta, linear factor) by layer kind, from the newer ``rope_parameters`` or the older flat keys."""
    if "rope_parameters" in raw:
        per_kind = raw["rope_parameters"]
        return {
            kind: (per_kind[f"{kind}_attention"]["rope_theta"], per_kind[f"{kind}_attention"].get("factor", 1.0))
            for kind in ("sliding", "full")
        }
    scaling = raw.get("rope_scaling") or {}
    return {"sliding": (raw["rope_local_base_freq"], 1.0), "full": (raw["rope_theta"], scaling.get("factor", 1.0))}


def config_to_json(config: ModelConfig) -> str:
    """As text, for the header of a packed checkpoint."""
    return json.dumps(asdict(config))


def config_from_json(text: str) -> ModelConfig:
    """The inverse of :func:`config_to_json`. Raises KeyError, TypeError or ValueError for other text."""
    raw = json.loads(text)
    raw["layers"] = tuple(raw["layers"])
    raw["attention"] = {kind: AttentionConfig(**values) for kind, values in raw["attention"].items()}
    raw["ids"] = SpecialIds(**{**raw["ids"], "eos": tuple(raw["ids"]["eos"])})
    raw["vision"] = None if raw["vision"] is None else VisionConfig(**raw["vision"])
    raw["audio"] = None if raw["audio"] is None else AudioConfig(**raw["audio"])
    return ModelConfig(**raw)
