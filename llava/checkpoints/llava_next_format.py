"""LLaVA-NeXT as transformers keeps it (`llava-hf/llava-v1.6-*-hf` on the hub), beside what every LLaVA has there.

Sizes are (height, width) there and (width, height) here. Canvases are turned over one by one and keep their order, by
which both sides choose among equals: a small square that takes 336 x 672 pixels takes them lying there if it does here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CLIPImageProcessorPil, LlavaNextConfig, MistralConfig
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.common.anyres import canvases_of, is_anyres
from llava.common.shown import shown
from llava.model.llava_config import LlavaConfig

CLASS = "LlavaNextForConditionalGeneration"
_MERGE_TYPE, _ASPECT_RATIO, _DIGITS = "spatial_unpad", "anyres", "image_unpad_digits"


def is_llava_next(config: Mapping[str, Any]) -> bool:
    """Whether the content of a `config.json` is that of transformers' LLaVA-NeXT."""
    return config.get("model_type") == "llava_next"


def is_on_llama(config: Mapping[str, Any]) -> bool:
    """Whether LLaVA's own model opens it: a Llama, or a Mistral without window, under a CLIP tower.

    Others stay transformers' own, with both stages inside.
    """
    if not is_llava_next(config):
        return False
    text, vision = (config.get(part) or {} for part in ("text_config", "vision_config"))
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        return True  # reading it says what is wrong
    windowed = text.get("sliding_window", MistralConfig().sliding_window) is not None
    language = text.get("model_type", "llama")
    plain = language == "llama" or (language == "mistral" and not windowed)
    return plain and vision.get("model_type", "clip_vision_model") == "clip_vision_model"


def fields_here(parsed: LlavaNextConfig, raw: Mapping[str, Any]) -> dict[str, Any]:
    """LLaVA's fields that LLaVA-1.5 has otherwise.

    Args:
        parsed: configuration of transformers.
        raw: content of its file. A conversion from here says whether rows were rounded; transformers does.
    """
    return {
        "mm_patch_merge_type": _MERGE_TYPE,
        "image_aspect_ratio": _ASPECT_RATIO,
        "image_grid_pinpoints": _turned(parsed.image_grid_pinpoints),
        _DIGITS: raw.get(_DIGITS, 7),
    }


def require_counterpart(config: LlavaConfig, source: str) -> None:
    """Check that transformers' LLaVA-NeXT can say what a configuration says.

    Raises:
        ValueError: if it cannot; names what.
    """
    for field, only in (
        ("image_aspect_ratio", _ASPECT_RATIO),
        ("mm_patch_merge_type", _MERGE_TYPE),
        ("mm_vision_select_feature", "patch"),
    ):
        value = getattr(config, field)
        if value != only:
            raise ValueError(
                f"{field} of {source!r} is {shown(value)}; transformers' LLaVA-NeXT has only {only!r}, so this model "
                "can only be written in LLaVA's format (--to llava)."
            )


def config_there(config: LlavaConfig, common: Mapping[str, Any]) -> LlavaNextConfig:
    """Transformers' configuration of a LLaVA-NeXT.

    Args:
        config: configuration of the LLaVA, with `mm_vision_config`.
        common: arguments that transformers' configuration of every LLaVA takes.
    """
    own = {
        "architectures": [CLASS],
        "image_grid_pinpoints": pinpoints_there(config),
        _DIGITS: config.image_unpad_digits,
    }
    return LlavaNextConfig(**{**common, **own})


def pinpoints_there(config: LlavaConfig) -> list[list[int]]:
    """Canvases as transformers has them."""
    assert config.mm_vision_config is not None
    return _turned(canvases_of(config.image_grid_pinpoints, config.mm_vision_config["image_size"]))


def image_processor_there(processor: CLIPImageProcessorPil, config: LlavaConfig) -> LlavaNextImageProcessorPil:
    """Transformers' image processor that does what `process_images` does here."""
    settings = {name: value for name, value in processor.to_dict().items() if name != "image_processor_type"}
    return LlavaNextImageProcessorPil.from_dict(
        settings | {"do_pad": True, "image_grid_pinpoints": pinpoints_there(config)}
    )


def cuts_images(config: LlavaConfig) -> bool:
    """Whether a LLaVA cuts images into crops, so that its counterpart is a LLaVA-NeXT."""
    return is_anyres(config.image_aspect_ratio)


def _turned(sizes: Any) -> list[list[int]]:
    return [[second, first] for first, second in sizes]
