"""The fields of a model's `config.json` that are read here: what may stand in each, before any library sees it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.activations import ACT2FN

from llava.checkpoints.settings_files import ADVICE
from llava.common.json_files import need, read_object
from llava.common.shown import shown
from llava.compression.config import CompressionConfig

_MOST_LAYERS, _WIDEST, _LARGEST_VOCABULARY = 1_000, 1 << 20, 1 << 24

# Whole numbers from 1 to a bound that no model comes near: beyond it building the model would take all memory.
_COUNTS = {
    "num_hidden_layers": _MOST_LAYERS,
    "vocab_size": _LARGEST_VOCABULARY,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"), _WIDEST),
    **dict.fromkeys(("head_dim", "mm_hidden_size", "image_size", "patch_size", "projection_dim"), _WIDEST),
    "num_channels": _WIDEST,
    **dict.fromkeys(("max_position_embeddings", "tokenizer_model_max_length", "max_sequence_length"), 1 << 62),
}
_KINDS: dict[type | tuple[type, ...], tuple[str, ...]] = {
    float: (
        "rms_norm_eps", "layer_norm_eps", "initializer_range", "initializer_factor", "attention_dropout", "rope_theta",
        "mm_projector_lr",
    ),
    bool: (
        "tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache", "mm_use_im_start_end",
        "mm_use_im_patch_token", "use_mm_proj", "tune_mm_mlp_adapter", "freeze_mm_mlp_adapter",
        "unfreeze_mm_vision_tower", "multimodal_projector_bias",
    ),
    str: (
        "model_type", "mm_vision_tower", "vision_tower", "mm_projector_type", "mm_vision_select_feature",
        "mm_patch_merge_type", "image_aspect_ratio", "image_opening", "conversation_template",
        "tokenizer_padding_side", "hidden_act", "projector_hidden_act", "vision_feature_select_strategy", "dtype",
        "torch_dtype", "_name_or_path", "transformers_version",
    ),
    int: (
        "mm_vision_select_layer", "bos_token_id", "pad_token_id", "image_token_index", "image_token_id",
        "image_seq_length", "pretraining_tp",
    ),
    (int, list): ("eos_token_id", "vision_feature_layer"),
    list: ("architectures",),
    dict: (
        "mm_vision_config", "text_config", "vision_config", "compression", "quantization_config", "rope_scaling",
        "rope_parameters", "auto_map",
    ),
}  # fmt: skip
_INNER = ("mm_vision_config", "text_config", "vision_config")


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a `config.json`, checked by `check_fields`.

    Raises:
        ValueError: if it is not a JSON object, or a field holds what cannot stand there; names the file.
    """
    config = read_object(path, ADVICE, mark=False)
    check_fields(config, repr(str(path)))
    return config


def check_fields(config: Mapping[str, Any], place: str) -> None:
    """Hold the fields of a `config.json` that are read here against what may stand in them; others are left alone.

    Args:
        config: content of the file, or an object in it.
        place: the file, and where in it the object stands.

    Raises:
        ValueError: names the first field that is wrong, its value, and what is accepted.
    """
    for key, most in _COUNTS.items():
        value = need(config, key, int, place, optional=True)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"{key} in {place} is {shown(value)}; it must be a whole number from 1 to {most:,}.")
    for kind, keys in _KINDS.items():
        for key in keys:
            need(config, key, kind, place, optional=True)
    for key in ("eos_token_id", "vision_feature_layer", "architectures"):
        for item in config[key] if isinstance(config.get(key), list) else ():
            need({key: item}, key, str if key == "architectures" else int, f"{place} (in its list)")
    if "hidden_act" in config and config["hidden_act"] not in ACT2FN:
        raise ValueError(f"hidden_act in {place} is {shown(config['hidden_act'])}, which transformers does not know.")
    projector: str | None = config.get("mm_projector_type")
    if projector and not re.fullmatch(r"linear|identity|mlp[1-9]\d?x_gelu", projector):
        raise ValueError(
            f"mm_projector_type is {shown(projector)}; it must be linear, identity or mlpNx_gelu such as mlp2x_gelu "
            f"(in {place})."
        )
    for key in _INNER:
        if isinstance(config.get(key), dict):
            check_fields(config[key], f"{place}: {key}")
    if config.get("compression") is not None:
        try:
            CompressionConfig.from_dict(config["compression"])
        except ValueError as error:
            raise ValueError(f"compression in {place}: {error}") from error
