"""Builds the vision tower that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from llava.common.known_towers import known_tower
from llava.model.llava_config import LlavaConfig
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.languagebind_towers import (
    LanguageBindImageTower,
    LanguageBindVideoTower,
)
from llava.model.multimodal_encoder.tower import VisionTower

TOWERS: dict[str, Callable[..., VisionTower]] = {"clip_vision_model": CLIPVisionTower}
"""Towers by the `model_type` of their configuration; each takes what `CLIPVisionTower` takes."""


def build_vision_tower(config: LlavaConfig) -> VisionTower:
    """The tower that `config` names (`mm_vision_tower`), with random weights until they are loaded.

    Dimensions come from `mm_vision_config` where the checkpoint carries them, else from the named directory, else from
    what is known of the towers that LLaVA's checkpoints name.

    Raises:
        ValueError: if no tower is named, or one of another kind than CLIP.
    """
    name = config.mm_vision_tower
    if not name:
        raise ValueError("No vision tower is named; set mm_vision_tower to a directory or hub name of a CLIP model.")
    saved = config.mm_vision_config or (None if Path(name).is_dir() else known_tower(name))
    kind = _kind(saved or PretrainedConfig.get_config_dict(name)[0])
    if kind not in TOWERS:
        raise ValueError(
            f"The vision tower {str(name)!r} is of model_type {kind!r}; LLaVA's own model runs {', '.join(TOWERS)}. "
            "Name a CLIP tower, or open a model with another tower in transformers' format and compress() it."
        )
    return TOWERS[kind](
        name,
        select_layer=config.mm_vision_select_layer,
        select_feature=config.mm_vision_select_feature,
        config=saved or None,
    )


def build_image_tower(config: LlavaConfig) -> LanguageBindImageTower | None:
    """The tower of a Video-LLaVA for images (`mm_image_tower`), with random weights until they are loaded; or None.

    Raises:
        ValueError: if it is of another kind than LanguageBind's.
    """
    name = config.mm_image_tower
    if not name:
        return None
    layer, feature = config.mm_vision_select_layer, config.mm_vision_select_feature
    return LanguageBindImageTower(name, layer, feature, config.mm_image_config or None)


def build_video_tower(config: LlavaConfig) -> LanguageBindVideoTower | None:
    """The tower of a Video-LLaVA for videos (`mm_video_tower`), with random weights until they are loaded; or None.

    Raises:
        ValueError: if it is of another kind than LanguageBind's.
    """
    name = config.mm_video_tower
    if not name:
        return None
    return LanguageBindVideoTower(name, config.mm_vision_select_layer, config.mm_video_config or None)


def _kind(settings: Mapping[str, Any]) -> str:
    """`model_type` of a tower; of the tower inside where a model for images and texts is named."""
    whole = str(settings.get("model_type", "clip_vision_model"))
    inside = settings.get("vision_config")
    if whole.endswith("_vision_model") or not isinstance(inside, Mapping):
        return whole
    return str(inside.get("model_type", f"{whole}_vision_model"))
