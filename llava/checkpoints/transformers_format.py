"""The layout in which transformers keeps a LLaVA (`llava-hf` on the hub), read and written in LLaVA's terms.

There `config.json` holds `text_config` and `vision_config`, and the weights are called `language_model.model.*`,
`multi_modal_projector.linear_1.*` and `vision_tower.vision_model.*`; newer versions of transformers also write
`model.language_model.*` and leave `vision_model` out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaNextConfig, VideoLlavaConfig
from transformers import LlavaConfig as HFConfig
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from llava.checkpoints import llava_next_format, video_llava_format
from llava.checkpoints.settings_files import read_by_library
from llava.common.known_towers import name_of_tower
from llava.common.shown import shown
from llava.conversation import TEMPLATE_FIELD
from llava.model.llava_config import LlavaConfig
from llava.model.parts import NEWLINE

TOWER = "model.vision_tower."
TOWERS = (TOWER, "model.image_tower.", "model.video_tower.")
"""What names of the weights of towers begin with; those of images and of videos are a Video-LLaVA's."""
PROJECTOR = "model.mm_projector."
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Either holds the settings of an image processor."""

# For `key_mapping` of transformers' `from_pretrained`: patterns of their names, and what stands there in LLaVA's.
NAMES_HERE = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^(?:model\.)?multi_modal_projector\.linear_1\.": f"{PROJECTOR}0.",
    r"^(?:model\.)?multi_modal_projector\.linear_2\.": f"{PROJECTOR}2.",
    r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": f"{TOWER}vision_tower.vision_model.",
    r"^(?:model\.)?image_tower\.(?:vision_model\.)?": "model.image_tower.image_tower.",
    r"^(?:model\.)?video_tower\.(?:vision_model\.)?": "model.video_tower.video_tower.",
    r"^(?:model\.)?image_newline": "model.image_newline",
}
# The other way, as published.
_NAMES_THERE = {
    rf"^{re.escape(TOWER)}vision_tower\.": "vision_tower.",
    r"^model\.image_tower\.image_tower\.": "image_tower.vision_model.",
    r"^model\.video_tower\.video_tower\.": "video_tower.vision_model.",
    rf"^{re.escape(PROJECTOR)}0\.": "multi_modal_projector.linear_1.",
    rf"^{re.escape(PROJECTOR)}2\.": "multi_modal_projector.linear_2.",
    r"^model\.image_newline": "image_newline",
    r"^model\.": "language_model.model.",
    r"^lm_head\.": "language_model.lm_head.",
}
# What transformers' configuration has no field for; it keeps such values without looking at them.
_CARRIED = (
    "compression",
    "image_opening",
    TEMPLATE_FIELD,
    "mm_vision_tower",
    "mm_use_im_start_end",
    "mm_use_im_patch_token",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
)
# Fields of a Llama's configuration that belong to the whole model there, or to the class.
_NOT_THE_TEXT = ("architectures", "dtype", "model_type", "transformers_version", "_name_or_path")
# What image processors of transformers' LLaVAs have beside CLIP's.
_NOT_CLIPS = ("do_pad", "image_processor_type", "image_grid_pinpoints")
_FEATURES = {"default": "patch", "full": "cls_patch"}
_CLASSES = {"llava": HFConfig, "llava_next": LlavaNextConfig, "video_llava": VideoLlavaConfig}


def is_hf_config(config: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is that of transformers' LLaVA rather than of LLaVA's own format."""
    return config.get("model_type") in _CLASSES and "text_config" in config


def config_here(raw: Mapping[str, Any], folder: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A `config.json` of transformers as (language model's fields, LLaVA's fields).

    Args:
        raw: content of the file.
        folder: where it lies, with the image processor's settings.

    Raises:
        ValueError: if the model has something that LLaVA's layout cannot say; names it.
    """
    sees_videos = raw["model_type"] == "video_llava"
    with read_by_library(Path(folder) / "config.json"):
        parsed: Any = _CLASSES[raw["model_type"]].from_dict(dict(raw))
    _require_sayable(parsed, folder, ("default",) if sees_videos else tuple(_FEATURES))
    vision, text = parsed.vision_config, parsed.text_config
    fields = {
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": parsed.vision_feature_layer,
        "mm_vision_select_feature": _FEATURES[parsed.vision_feature_select_strategy],
        "use_mm_proj": True,
    }
    if sees_videos:
        fields |= video_llava_format.fields_here(parsed, raw)
    else:
        fields |= {
            "mm_vision_tower": vision.name_or_path or name_of_tower(vision.to_dict()) or "clip_vision_tower",
            "mm_vision_config": vision.to_dict(),
            "mm_patch_merge_type": "flat",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad" if _pads(folder) else "square",
        }
    if llava_next_format.is_llava_next(raw):
        fields |= llava_next_format.fields_here(parsed, raw)
    fields |= {name: raw[name] for name in (*_CARRIED, "quantization_config") if name in raw}
    shared = {"tie_word_embeddings": parsed.tie_word_embeddings, "dtype": parsed.dtype or text.dtype}
    return text.to_dict() | shared, fields


def _require_sayable(parsed: Any, folder: str | Path, strategies: Sequence[str]) -> None:
    """Raise ValueError where a model of transformers has what LLaVA's layout cannot say; names it."""
    for said, value, accepted in (
        ("The model_type of the vision tower", parsed.vision_config.model_type, ("clip_vision_model",)),
        ("projector_hidden_act", parsed.projector_hidden_act, ("gelu",)),
        ("multimodal_projector_bias", parsed.multimodal_projector_bias, (True,)),
        ("vision_feature_select_strategy", parsed.vision_feature_select_strategy, strategies),
    ):
        if value not in accepted:
            only = " and ".join(map(shown, accepted))
            raise ValueError(f"{said} in {str(folder)!r} is {shown(value)}; only {only} is supported.")
    if not isinstance(parsed.vision_feature_layer, int):
        raise ValueError(
            f"vision_feature_layer in {str(folder)!r} is {shown(parsed.vision_feature_layer)}; only the features of "
            "one layer are supported, such as -2."
        )


def require_counterpart(config: LlavaConfig | None, source: str) -> None:
    """Check that transformers' LLaVA can say what a configuration says, before any weight is read.

    Raises:
        ValueError: if it cannot; names what.
    """
    if config is None or not config.sees:
        raise ValueError(f"{source!r} has no vision tower (mm_vision_tower in config.json); it is not a LLaVA.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{source!r} is quantised (quantization_config in its config.json), and its weights mean nothing under "
            "other names; convert the model it was made from."
        )
    kind = config.mm_projector_type
    if kind != "mlp2x_gelu":
        raise ValueError(
            f"mm_projector_type of {source!r} is {shown(kind)}; transformers' LLaVA has only mlp2x_gelu, so this model "
            "can only be written in LLaVA's format (--to llava)."
        )
    if config.sees_videos:
        video_llava_format.require_counterpart(config, source)
    if llava_next_format.cuts_images(config):
        llava_next_format.require_counterpart(config, source)
        return
    merge_type = config.mm_patch_merge_type
    if merge_type != "flat" and not config.sees_videos:
        raise ValueError(
            f"mm_patch_merge_type of {source!r} is {shown(merge_type)}, but its images are not cut "
            f"(image_aspect_ratio {shown(config.image_aspect_ratio)}); transformers' LLaVA has nothing of that, so "
            "this model can only be written in LLaVA's format (--to llava)."
        )
    aspect_ratio = config.image_aspect_ratio
    if aspect_ratio not in ("pad", "square"):
        raise ValueError(
            f"image_aspect_ratio of {source!r} is {shown(aspect_ratio)}; transformers' LLaVA pads to a square or crops "
            "one out, so write 'pad' or 'square' into its config.json, or convert --to llava."
        )


def text_fields(config: LlavaConfig) -> dict[str, Any]:
    """The fields of a LLaVA's configuration that are its language model's, for a `LlamaConfig`."""
    known = LlamaConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if name in known and name not in _NOT_THE_TEXT}


def type_there(config: Any) -> str:
    """The `model_type` that a model has in transformers' format."""
    if not isinstance(config, LlavaConfig):
        return str(config.model_type)
    return "video_llava" if config.sees_videos else "llava_next" if llava_next_format.cuts_images(config) else "llava"


def config_there(
    config: LlavaConfig, tokens: Mapping[str, int], vocabulary: int
) -> HFConfig | LlavaNextConfig | VideoLlavaConfig:
    """Transformers' configuration of a LLaVA.

    Args:
        config: configuration of the LLaVA, with the dimensions of its towers.
        tokens: ids of `image`, `video` (of a Video-LLaVA) and `pad` in the tokenizer that goes with the result.
        vocabulary: rows of the embeddings there.
    """
    text = text_fields(config) | {"vocab_size": vocabulary, "pad_token_id": tokens["pad"]}
    carried = {name: getattr(config, name) for name in _CARRIED if getattr(config, name) is not None}
    if config.sees_videos:
        return video_llava_format.config_there(config, LlamaConfig(**text), tokens, carried)
    vision = CLIPVisionConfig.from_dict(config.mm_vision_config)
    strategy = {here: there for there, here in _FEATURES.items()}[config.mm_vision_select_feature]
    common = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": LlamaConfig(**text),
        "vision_config": vision,
        "image_token_index": tokens["image"],
        "pad_token_id": tokens["pad"],
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
        "vision_feature_layer": config.mm_vision_select_layer,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": config.tie_word_embeddings,
        **carried,
    }
    return (
        llava_next_format.config_there(config, common) if llava_next_format.cuts_images(config) else HFConfig(**common)
    )


def name_there(name: str) -> str:
    """What transformers calls a weight of a LLaVA, in published checkpoints."""
    for pattern, replacement in _NAMES_THERE.items():
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    raise ValueError(f"A LLaVA has no weight {name!r}; it cannot be written in transformers' format.")


def projector_name(name: str) -> str | None:
    """LLaVA's name of a projector's weight, whatever format it is in and whatever stands in front; None of others.

    LLaVA-NeXT's `image_newline` is one of them.
    """
    if name.rpartition(".")[2] == NEWLINE:
        return f"model.{NEWLINE}"
    part = PROJECTOR.removeprefix("model.")
    if part in name:
        return PROJECTOR + name.split(part, 1)[1]
    for layer, number in (("linear_1", 0), ("linear_2", 2)):
        if f"multi_modal_projector.{layer}." in name:
            return f"{PROJECTOR}{number}.{name.rsplit('.', 1)[1]}"
    return None


def read_image_processor(folder: str | Path) -> CLIPImageProcessorPil | None:
    """CLIP's image processor with the settings that a folder holds, in either file; None where it has none.

    Padding to a square is `image_aspect_ratio`'s business here, so it is taken out.
    """
    settings = _processor_settings(folder)
    if settings is None:
        return None
    settings = {name: value for name, value in settings.items() if name not in _NOT_CLIPS}
    with read_by_library(f"{folder}/preprocessor_config.json"):
        return CLIPImageProcessorPil.from_dict(settings)


def image_processor_there(processor: CLIPImageProcessorPil, config: LlavaConfig) -> Any:
    """Transformers' image processor that does what `process_images` does here."""
    if llava_next_format.cuts_images(config):
        return llava_next_format.image_processor_there(processor, config)
    if config.image_aspect_ratio != "pad":
        return processor
    settings = {name: value for name, value in processor.to_dict().items() if name != "image_processor_type"}
    return LlavaImageProcessorPil.from_dict(settings | {"do_pad": True})


def _pads(folder: str | Path) -> bool:
    settings = _processor_settings(folder) or {}
    return "llava" in str(settings.get("image_processor_type", "")).lower() and bool(settings.get("do_pad", False))


def _processor_settings(folder: str | Path) -> dict[str, Any] | None:
    if not any((Path(folder) / name).is_file() for name in PROCESSOR_FILES):
        return None
    try:
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(str(folder))
    except OSError:  # a processor_config.json of a text model, say
        return None
    return dict(settings)
