"""What measurements run: a prefill, the decoding behind it, a training step; and the FLOPs of each."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.cost.flops import prefill_flops, training_flops, visual_tokens_per_layer
from llava.cost.shapes import DecoderShape, VisionShape
from llava.model.cache_name import cache_of


@torch.no_grad()
def prefill(model: Any, batch: dict[str, Tensor], compression: CompressionConfig) -> Any:
    """The forward pass from pixels and ids to the first answer token's logits and a filled cache."""
    return model(**batch, compression=compression, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def decode(model: Any, filled: Any, count: int) -> None:
    """`count` forward passes of one token a row behind the cache of a `prefill`, each on the likeliest next token."""
    cache, output = cache_of(filled), filled
    for _ in range(count):
        output = model(output.logits[:, -1:].argmax(dim=-1), past_key_values=cache)


def train_step(model: Any, batch: dict[str, Tensor], compression: CompressionConfig) -> None:
    """Forward and backward; no optimizer."""
    model.zero_grad(set_to_none=True)
    model(**batch, compression=compression, use_cache=False).loss.backward()


def shapes_of(config: Any, tower: Any) -> tuple[DecoderShape, VisionShape]:
    """Dimensions of a LLaVA by its configuration and that of its tower."""
    vision = VisionShape.of(tower, config.mm_vision_select_layer)
    if config.mm_vision_select_feature == "cls_patch":
        vision = dataclasses.replace(vision, patches=vision.tokens, has_cls=False)
    return DecoderShape.of(config), vision


def row_flops(
    model: Any, compression: CompressionConfig, text_tokens: int, images: int = 1, passes: int | None = None
) -> int:
    """FLOPs of one row.

    Args:
        model: LLaVA.
        compression: budget of the row.
        text_tokens, images: number of text tokens and of images of the row.
        passes: passes of a training step, see `training_passes`; None counts a prefill.
    """
    decoder, vision = shapes_of(model.config, model.get_vision_tower().config)
    tokens = visual_tokens_per_layer(compression, decoder.layers, vision, images)
    if passes is None:
        return prefill_flops(tokens, text_tokens, decoder, vision, images)
    return training_flops(tokens, text_tokens, decoder, vision, images, passes)
