"""Following the visual tokens of a batch: what V2V made of each patch and where T2V dropped each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.compression.v2v import V2VResult


@dataclass(frozen=True)
class CompressionTrace:
    """Where the visual tokens of a batch went.

    Attributes:
        merged: role and target of every patch of every image, in reading order; None without V2V.
        alive: after so many layers, bool [B, N] which of the N visual tokens that entered are still there.
        scores: after so many layers, float32 [B, N] what the tokens present were ranked by; absent if not ranked.
        entered: visual tokens of each row that entered the decoder.
    """

    merged: V2VResult | None
    alive: dict[int, Tensor]
    scores: dict[int, Tensor]
    entered: tuple[int, ...]


@torch.no_grad()
def trace_compression(
    model: Any,
    input_ids: Tensor,
    images: Tensor | Sequence[Tensor],
    attention_mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    compression: CompressionConfig | None = None,
) -> CompressionTrace:
    """Run one prefill of a LLaVA and say what became of every patch and visual token.

    Args:
        model: LLaVA.
        input_ids, images, attention_mask, query_mask: as in the model's forward, one image for each placeholder.
        compression: instead of the model's own.
    """
    compression = compression or model.compression
    merged = None
    if compression.v2v is not None:
        pixels = torch.cat([image if image.dim() == 4 else image[None] for image in images])
        merged = model.get_vision_tower().merge(pixels, compression.v2v)
    output = model(
        input_ids.to(model.device),
        attention_mask=attention_mask,
        images=images,
        query_mask=query_mask,
        compression=compression,
        use_cache=False,
        logits_to_keep=1,
    )
    layers = compression.t2v.layers if compression.t2v else ()
    before, after = output.layouts[:-1], output.layouts[1:]
    return CompressionTrace(
        merged=merged,
        alive={layer: layout.alive() for layer, layout in zip(layers, after, strict=True)},
        scores={
            layer: layout.by_visual_index(scores, 0.0)
            for layer, layout, scores in zip(layers, before, output.scores, strict=True)
            if scores is not None
        },
        entered=output.layouts[0].entered,
    )
