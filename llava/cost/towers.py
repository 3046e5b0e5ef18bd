"""Dimensions of vision towers of every family, from the configuration that each of them has."""

from __future__ import annotations

import dataclasses
from typing import Any

from llava.cost.dimensions import VisionShape


def tower_shape(config: Any, select_layer: int = -1) -> VisionShape:
    """Dimensions of a tower like CLIP's, LanguageBind's, SigLIP's, or like Qwen-VL's, whose images have any size.

    Args:
        config: transformers' configuration of the tower.
        select_layer: index into the hidden states whose features are taken; of Qwen-VL's it is always the last.

    Raises:
        ValueError: if the configuration is of another kind.
    """
    if hasattr(config, "image_size") and hasattr(config, "num_hidden_layers"):
        shape = VisionShape.of(config, select_layer)
        if getattr(config, "add_time_attn", False):
            return dataclasses.replace(shape, clip=config.num_frames)
        return shape if "clip" in config.model_type else dataclasses.replace(shape, has_cls=False)
    if hasattr(config, "depth") and hasattr(config, "spatial_merge_size"):
        return _of_qwen(config)
    raise ValueError(
        f"A vision tower with the configuration {type(config).__name__} has dimensions that cost does not know; add "
        "them to llava/cost/towers.py."
    )


def _of_qwen(config: Any) -> VisionShape:
    """Qwen2.5-VL's MLP is gated, three maps for CLIP's two, and most of its blocks attend within windows only."""
    whole = getattr(config, "fullatt_block_indexes", None)
    windowed = 0 if whole is None else config.depth - len(whole)
    side = getattr(config, "window_size", 0) // config.patch_size
    gated = whole is not None
    return VisionShape(
        layers=config.depth,
        width=config.hidden_size,
        mlp=config.intermediate_size * 3 // 2 if gated else config.intermediate_size,
        patches=0,
        patch_values=config.in_channels * config.temporal_patch_size * config.patch_size**2,
        has_cls=False,
        windowed=windowed,
        window=side * side,
    )
