"""From a configuration to a vision tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig

from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.known_towers import known_tower


def build_vision_tower(config: Any) -> CLIPVisionTower:
    """The tower that `config` names (`mm_vision_tower`), with random weights until they are loaded.

    Dimensions come from `mm_vision_config` where the checkpoint carries them, else from the named directory, else from
    what is known of the towers that LLaVA's checkpoints name.

    Raises:
        ValueError: if no tower is named.
    """
    name = getattr(config, "mm_vision_tower", None) or getattr(config, "vision_tower", None)
    if not name:
        raise ValueError("No vision tower is named; set mm_vision_tower to a directory or hub name of a CLIP model.")
    saved = getattr(config, "mm_vision_config", None) or (None if Path(name).is_dir() else known_tower(name))
    return CLIPVisionTower(
        name,
        select_layer=getattr(config, "mm_vision_select_layer", -2),
        select_feature=getattr(config, "mm_vision_select_feature", "patch"),
        config=CLIPVisionConfig(**saved) if saved else None,
    )
