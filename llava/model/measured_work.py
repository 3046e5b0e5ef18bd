"""What measurements run: a prefill, the decoding behind it, a training step; and the FLOPs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.cost.flops import prefill_flops, training_flops, visual_tokens_per_layer
from llava.cost.seen_media import Medium, Vision, seen_by
from llava.cost.shapes import DecoderShape
from llava.model.cache_name import cache_of
from llava.model.trace import tower_of


@torch.no_grad()
def prefill(model: Any, batch: dict[str, Tensor], compression: CompressionConfig) -> Any:
    """The forward pass from pixels and ids to the first answer token's logits and a filled cache."""
    return model(**batch, compression=compression, use_cache=True, logits_to_keep=1)


@torch.no_grad()
def decode(model: Any, filled: Any, count: int, compression: CompressionConfig | None = None) -> None:
    """`count` forward passes of one token a row behind the cache of a `prefill`, each on the likeliest next token.

    Args:
        model: model of the prefill.
        filled: its output.
        count: passes.
        compression: compression of the prefill, if it is not the model's own.
    """
    cache, output = cache_of(filled), filled
    under = {} if compression in (None, CompressionConfig()) else {"compression": compression}
    for _ in range(count):
        output = model(output.logits[:, -1:].argmax(dim=-1), past_key_values=cache, **under)


def train_step(model: Any, batch: dict[str, Tensor], compression: CompressionConfig) -> None:
    """Forward and backward; no optimizer."""
    model.zero_grad(set_to_none=True)
    model(**batch, compression=compression, use_cache=False).loss.backward()


def shapes_of_model(config: Any, medium: Medium | None = None, together: int = 1) -> tuple[DecoderShape, Vision]:
    """Dimensions of a model of any family by its configuration, and of what it is shown.

    Args:
        config: configuration of the model.
        medium: None for what is usual of its family.
        together: how many of them a prompt shows.

    Raises:
        ValueError: if it cannot be shown that.
    """
    return DecoderShape.of(config.get_text_config()), seen_by(config.to_dict(), medium, together)


def row_flops(
    model: Any,
    compression: CompressionConfig,
    text_tokens: int,
    images: int = 1,
    passes: int | None = None,
    medium: Medium | None = None,
) -> int:
    """FLOPs of one row.

    Args:
        model: model of any family.
        compression: budget of the row.
        text_tokens, images: number of text tokens and of images of the row.
        passes: passes of a training step, see `training_passes`; None counts a prefill.
        medium: what an image is, see `shapes_of_model`.
    """
    decoder, vision = shapes_of_model(model.config, medium, images)
    tokens = visual_tokens_per_layer(compression, decoder.layers, vision, images)
    if passes is None:
        return prefill_flops(tokens, text_tokens, decoder, vision, images)
    return training_flops(tokens, text_tokens, decoder, vision, images, passes)


def tower_run(model: Any, batch: Mapping[str, Any], compression: CompressionConfig) -> Callable[[], object]:
    """A pass of the vision tower over the images (or videos) of a batch, with V2V if the compression has it.

    Args:
        model: model of any family; of one that is not in LLaVA's own format the projector runs too.
        batch: arguments of its forward.
        compression: what to do.
    """
    if not hasattr(model, "named_towers"):
        shown = {name: batch.get(name) for name in model.visual_inputs}
        return partial(model.visual_spans, compression, shown)
    images = batch["images"]
    tower = tower_of(model, images[0])
    if not isinstance(images, Tensor):
        in_crops = images[0].dim() == 4 and not model.config.sees_videos
        images = torch.cat(images) if in_crops else torch.stack(images)
    return partial(tower, images, compression.v2v)
