"""Dimensions of the towers that LLaVA's published checkpoints name without saying how large they are.

With them a checkpoint that holds its tower opens without a network. The numbers are those of OpenAI's `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_LARGE_336 = _CLIP_LARGE | {"image_size": 336}  # of LLaVA-1.5
KNOWN_TOWERS = {
    "clip-vit-large-patch14": _CLIP_LARGE | {"image_size": 224},
    "clip-vit-large-patch14-336": CLIP_LARGE_336,
}
"""By the last component of their names."""


def known_tower(name: str) -> dict[str, Any] | None:
    """Dimensions of the tower called `name`, whatever folder or owner stands before its last component; or None."""
    return KNOWN_TOWERS.get(PurePath(name).name)


def name_of_tower(dimensions: Mapping[str, Any]) -> str | None:
    """Hub name of the known tower with these dimensions; or None."""
    for name, known in KNOWN_TOWERS.items():
        if all(dimensions.get(field) == value for field, value in known.items()):
            return f"openai/{name}"
    return None
