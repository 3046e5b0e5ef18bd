"""How many weights a model of transformers has, part by part, counted on the model itself without any storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_TOWERS = (".visual.", ".vision_tower.", ".image_tower.", ".video_tower.")
_PROJECTORS = (".merger.", ".deepstack_merger_list.", ".multi_modal_projector.", ".image_newline")


def weight_counts(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Weights of language model (head included), projector and towers.

    A head that is the embedding counts once.

    Args:
        config: what `config.json` holds, with transformers' defaults.

    Raises:
        ValueError: if transformers makes no model of it.
    """
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    try:
        made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(made)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"A {config.get('model_type')} cannot be counted: {error}") from error
    counts = [0, 0, 0]
    for name, weight in model.named_parameters():
        place = f".{name}."
        part = 1 if any(mark in place for mark in _PROJECTORS) else 2 if any(mark in place for mark in _TOWERS) else 0
        counts[part] += weight.numel()
    return counts[0], counts[1], counts[2]
