"""How many weights a model of transformers has, part by part, counted on the model itself without any storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_PROJECTORS = (".merger.", ".deepstack_merger_list.", ".multi_modal_projector.", ".image_newline.")
"""Parts of the names that transformers gives the weights of projectors, which may lie inside a tower."""


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
    of_language = {
        id(weight) for part in (model.get_decoder(), model.get_output_embeddings()) for weight in part.parameters()
    }
    language, projector, towers = 0, 0, 0
    for name, weight in model.named_parameters():
        if id(weight) in of_language:
            language += weight.numel()
        elif any(mark in f".{name}." for mark in _PROJECTORS):
            projector += weight.numel()
        else:
            towers += weight.numel()
    return language, projector, towers
