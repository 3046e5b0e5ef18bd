"""`config.json` of a LLaVA-OneVision in LLaVA-NeXT's own layout (`lmms-lab/llava-onevision-*`), in transformers' terms.

That program takes the last of the features of a SigLIP tower that has lost its last layer, whatever
`mm_vision_select_layer` and `mm_vision_select_feature` say; so does the model that is described here. Canvases are
(width, height) there and (height, width) in transformers: they are turned over one by one and keep their order.

Sources: LLaVA-VL/LLaVA-NeXT, `llava/model/llava_arch.py` and `multimodal_encoder/siglip_encoder.py`; transformers,
`convert_llava_onevision_weights_to_hf.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from llava.common.anyres import canvases_of, most_crops
from llava.common.json_files import need, read_object
from llava.common.shown import shown

USUAL_MARK_IDS = (151646, 151647)
"""Ids of `<image>` and `<video>` behind the tokens of Qwen2, as in the published conversions."""
_TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 384,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }
}
"""Dimensions of known towers by the last part of their names, as their publisher's `config.json` has them."""
_WIDEST = 1 << 20
TOWER_FOLDER = "siglip"
"""Folder inside a checkpoint with the `config.json` of a tower that is not a known one."""
_KNOWN = "google/siglip-so400m-patch14-384"
_UNSAID: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
"""What transformers takes for a SigLIP whose file leaves a field out."""
_OF_THE_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
)
_OF_THE_WHOLE = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "compression", "image_opening")
# What changes what the model computes, and what transformers' class does: fields, and values that mean the same.
_ALONE: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_patch_merge_type": ("spatial_unpad",),
    "mm_newline_position": ("one_token", None),
    "mm_spatial_pool_mode": ("bilinear", None),
    "mm_spatial_pool_stride": (2, None),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False, None),
    "mm_use_im_patch_token": (False, None),
    "add_faster_video": (False, None),
    "s2": (False, None),
}
_OF_VIDEOS = ("mm_newline_position", "mm_spatial_pool_mode", "mm_spatial_pool_stride")


def onevision_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same model as a `config.json` of transformers' LLaVA-OneVision describes it.

    The ids of `<image>` and `<video>` are the tokenizer's business: here they are those behind the tokens of Qwen2, or
    the last two of a smaller vocabulary.

    Args:
        config: content of the file, for which `llava.common.presets.is_onevision_layout` holds.
        folder: where it lies; a tower may be named by a folder inside.

    Raises:
        ValueError: if the model has what transformers' LLaVA-OneVision has not, or its tower is not known; names the
            field, its value and what is accepted.
    """
    path = str(folder / "config.json")
    _require_onevision(config, path)
    vision = _tower(config.get("mm_vision_tower"), folder)
    if config.get("mm_hidden_size") not in (None, vision["hidden_size"]):
        raise ValueError(
            f"mm_hidden_size in {path!r} is {shown(config['mm_hidden_size'])}, but its vision tower "
            f"{shown(config.get('mm_vision_tower'))} is {vision['hidden_size']} wide."
        )
    try:
        canvases = canvases_of(config.get("image_grid_pinpoints"), vision["image_size"])
    except ValueError as error:
        raise ValueError(f"{error} ({path})") from error
    rows = need(config, "vocab_size", int, repr(path), optional=True) or 0
    image, video = USUAL_MARK_IDS if max(USUAL_MARK_IDS) < rows else (max(rows - 2, 0), max(rows - 1, 0))
    return {
        "model_type": "llava_onevision",
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "text_config": {
            "model_type": "qwen2",
            **{field: config[field] for field in _OF_THE_TEXT if field in config},
        },
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": config["image_aspect_ratio"],
        "image_grid_pinpoints": [[height, width] for width, height in canvases],
        "image_token_index": image,
        "video_token_index": video,
        **{field: config[field] for field in _OF_THE_WHOLE if field in config},
    }


def layout_config(config: Mapping[str, Any], source: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A `config.json` of transformers' LLaVA-OneVision in LLaVA-NeXT's own layout.

    Args:
        config: content of the file, defaults written out.
        source: where it comes from, for messages.

    Returns:
        The content there; and the `config.json` of the tower, where that is not a known one: it belongs into a folder
        `TOWER_FOLDER` inside.

    Raises:
        ValueError: if the model has what that layout does not say; names it.
    """
    text, vision = config["text_config"], config["vision_config"]
    for said, value, accepted in (
        ("text_config of model_type", text["model_type"], "qwen2"),
        ("vision_config of model_type", vision["model_type"], "siglip_vision_model"),
        ("vision_use_head of its vision_config", vision.get("vision_use_head"), False),
        ("vision_feature_layer", config["vision_feature_layer"], -1),
        ("vision_feature_select_strategy", config["vision_feature_select_strategy"], "full"),
        ("projector_hidden_act", config["projector_hidden_act"], "gelu"),
        ("multimodal_projector_bias", config["multimodal_projector_bias"], True),
    ):
        if value != accepted:
            raise ValueError(
                f"{said} in {source!r} is {shown(value)}; LLaVA-NeXT's own layout can only say {shown(accepted)}."
            )
    tower = {field: vision[field] for field in _UNSAID} | {"num_hidden_layers": vision["num_hidden_layers"] + 1}
    name = next((f"google/{name}" for name, known in _TOWERS.items() if known == tower), TOWER_FOLDER)
    fields = {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        **{field: text[field] for field in _OF_THE_TEXT if text.get(field) is not None},
        **{field: config[field] for field in _OF_THE_WHOLE if config.get(field) is not None},
        "image_aspect_ratio": config["vision_aspect_ratio"],
        "image_grid_pinpoints": [[width, height] for height, width in config["image_grid_pinpoints"]],
        "mm_hidden_size": tower["hidden_size"],
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": name,
        "tokenizer_model_max_length": text["max_position_embeddings"],
        "tokenizer_padding_side": "right",
        "use_mm_proj": True,
    }
    rope = fields.get("rope_parameters") or {}
    if rope.get("rope_type", "default") == "default" and "rope_theta" in rope:  # as LLaVA-NeXT's transformers has it
        fields["rope_theta"] = fields.pop("rope_parameters")["rope_theta"]
    return fields, ({"model_type": "siglip_vision_model", **tower} if name == TOWER_FOLDER else None)


def _require_onevision(config: Mapping[str, Any], path: str) -> None:
    """Raise ValueError where a model is not what transformers' LLaVA-OneVision computes."""
    for field, accepted in _ALONE.items():
        value = config.get(field)
        if any(value is one or (type(value) is type(one) and value == one) for one in accepted):
            continue
        hint = " It concerns videos alone: to show the model images, write that there." if field in _OF_VIDEOS else ""
        raise ValueError(
            f"{field} in {path!r} is {shown(value)}; of LLaVAs on Qwen in LLaVA-NeXT's own layout only LLaVA-OneVision "
            f"is known, whose {field} is {shown(accepted[0])}.{hint}"
        )
    ratio = config.get("image_aspect_ratio")
    if most_crops(ratio if isinstance(ratio, str) else None) is None:
        raise ValueError(
            f"image_aspect_ratio in {path!r} is {shown(ratio)}; LLaVA-OneVision's is anyres_max_9, or anyres_max_N "
            "with another number."
        )


def _tower(name: Any, folder: Path) -> dict[str, Any]:
    """Transformers' `vision_config` of a named tower without its last layer.

    Raises:
        ValueError: if it is neither known nor the folder of a SigLIP.
    """
    where = f"mm_vision_tower in {str(folder / 'config.json')!r} is {shown(name)}"
    accepted = f"known is {_KNOWN}, or give the folder of a SigLIP with its config.json"
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}; {accepted}.")
    place = next((place for place in (Path(name), folder / name) if (place / "config.json").is_file()), None)
    held = _TOWERS.get(PurePath(name).name)
    if place is not None:
        held = read_object(place / "config.json", "fetch or copy it anew")
        kind = held.get("model_type")
        if kind == "siglip":
            held = need(held, "vision_config", dict, repr(str(place / "config.json")))
        elif kind != "siglip_vision_model":
            raise ValueError(f"{where}, a {shown(kind)}; {accepted}.")
    if held is None:
        raise ValueError(
            f"{where}; {accepted}. Another model than LLaVA-OneVision opens in transformers' format, if any."
        )
    dimensions = _UNSAID | {field: held[field] for field in _UNSAID if field in held}
    for field, usual in _UNSAID.items():
        least = 2 if field == "num_hidden_layers" else 1
        value = need(dimensions, field, type(usual), f"the vision tower {name!r}")
        if isinstance(value, int) and not least <= value <= _WIDEST:
            raise ValueError(
                f"{field} of the vision tower {name!r} is {value}; it must be a whole number from {least} to {_WIDEST}."
            )
    layers = dimensions["num_hidden_layers"]
    left = {"num_hidden_layers": layers - 1, "vision_use_head": False}
    return {"model_type": "siglip_vision_model", **dimensions, **left}
