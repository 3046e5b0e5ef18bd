"""Following the visual tokens of a batch: what V2V made of each patch and where T2V dropped each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.crop_merging import CropMerging
from llava.model.crops import Crops, crop_merging, raster_order

_NOT_TRACED = (
    "What became of every patch (--save-overlay) is told of models in LLaVA's own format (LLaVA-1.5, LLaVA-NeXT, "
    "Video-LLaVA), whose towers see squares of one size;"
)


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


def check_traced(model: Any) -> None:
    """Say that a model's patches cannot be traced.

    Raises:
        ValueError: if it is not in LLaVA's own format.
    """
    if not hasattr(model, "named_towers"):
        raise ValueError(f"{_NOT_TRACED} this {model.config.model_type}'s tower does not.")


def units_of(medium: Any) -> list[Tensor]:
    """The squares [3, side, side] of a medium that the tower encodes by themselves: an image, crops, or frames.

    Args:
        medium: as a family of LLaVA's own format prepares it.

    Raises:
        ValueError: if it is another family's, whose tower sees images at their own size.
    """
    if isinstance(medium, Crops):
        return list(medium.pixels)
    if isinstance(medium, Tensor):
        return [medium] if medium.dim() == 3 else list(medium.transpose(0, 1))
    raise ValueError(f"{_NOT_TRACED} this model's tower does not.")


@torch.no_grad()
def trace_batch(
    model: Any, inputs: Mapping[str, Any], media: Sequence[Any], compression: CompressionConfig
) -> CompressionTrace:
    """Run one prefill of a model in LLaVA's own format and say what became of every patch and visual token.

    Args:
        model: LLaVA-1.5, LLaVA-NeXT or Video-LLaVA.
        inputs: arguments of its forward for one prompt, without labels.
        media: what it shows, in reading order, as the family prepared it.
        compression: the budget.

    Raises:
        ValueError: if tokens do not stand for the patches of one image, crop or frame after the other.
    """
    v2v = compression.v2v
    units = [units_of(medium) for medium in media]
    merged = None if v2v is None else _merged(model, media, units, v2v)
    own = _tokens_of_units(model, media, units, compression, merged)
    trace = _traced(model, inputs, merged, compression)
    return dataclasses.replace(
        trace,
        alive={layer: flags[:, own] for layer, flags in trace.alive.items()},
        scores={layer: ranks[:, own] for layer, ranks in trace.scores.items()},
        entered=(len(own),),
    )


def _tokens_of_units(
    model: Any,
    media: Sequence[Any],
    units: Sequence[list[Tensor]],
    compression: CompressionConfig,
    merged: V2VResult | None,
) -> list[int]:
    """Which visual tokens of a row are those of images, crops and frames, as many of each, and no newline behind one.

    Unit by unit, wherever `v2v.crop_order` puts them in the row.

    Raises:
        ValueError: if some stand for several, or there are more of one than of another.
    """
    settings, start, seen, sizes = model.plan_settings(compression), 0, 0, set()
    own: list[int] = []
    places: Iterable[int]
    for medium, squares in zip(media, units, strict=True):
        each, total = tower_of(model, medium).tokens_per_image(compression.v2v), sum(settings.counts(medium))
        sizes.add(each)
        if total < each * len(squares) or (total > each * len(squares) and len(squares) > 1):
            sizes.add(0)
        places = range(each * len(squares))
        if merged is not None and compression.v2v and compression.v2v.crop_order == "raster" and len(squares) > 1:
            merging = crop_merging(model.config, tower_of(model, medium))
            places = places_in_raster(medium, merging, merged, slice(seen, seen + len(squares)))
        own += [start + place for place in places]
        start += total
        seen += len(squares)
    if len(sizes) > 1 and compression.v2v is not None:
        raise ValueError(
            "Some crops or frames bring other numbers of visual tokens than others (mm_patch_merge_type may leave the "
            "whole of an image out), so they cannot be drawn in rows; python -m llava.serve.web shows them."
        )
    if len(sizes) > 1:
        raise ValueError(
            "Without v2v some visual tokens are no patch of one image, crop or frame (mm_patch_merge_type), or images "
            "and frames have different numbers of them, so they cannot be drawn in rows. Use a budget with v2v; "
            "python -m llava.serve.web shows them without."
        )
    return own


def places_in_raster(medium: Any, merging: CropMerging, merged: V2VResult, crops: slice) -> list[int]:
    """Where the tokens of an image's crops, crop by crop, stand among the image's (`v2v.crop_order: raster`).

    Args:
        medium: the image; anything but `Crops` is not reordered.
        merging: how the model joins crops.
        merged: tokens of the crops of several images.
        crops: those of this image.
    """
    count = merged.tokens[crops].shape[0] * merged.tokens.shape[1]
    if not isinstance(medium, Crops):
        return list(range(count))
    order = raster_order(merged, crops, merging.grid(medium.size, len(medium.pixels)), merging.patches)
    places: list[int] = order.argsort().tolist()
    return places


def tower_of(model: Any, medium: Any) -> Any:
    """The tower that sees a medium."""
    towers = dict(model.named_towers())
    video = isinstance(medium, Tensor) and medium.dim() == 4
    return towers.get("vision_tower") or towers["video_tower" if video else "image_tower"]


def _merged(model: Any, media: Sequence[Any], units: Sequence[list[Tensor]], v2v: V2VConfig) -> V2VResult:
    """V2V of every image, crop and frame, in reading order."""
    results = []
    for medium, squares in zip(media, units, strict=True):
        tower = tower_of(model, medium)
        results.append(tower.merge(torch.stack(squares).to(tower.device), v2v))
    plans = [result.plan for result in results]
    fields = {field.name: [getattr(plan, field.name) for plan in plans] for field in dataclasses.fields(plans[0])}
    plan = dataclasses.replace(plans[0], **{name: torch.cat(values) for name, values in fields.items()})
    return dataclasses.replace(results[0], tokens=torch.cat([result.tokens for result in results]), plan=plan)


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
        compression: compression used instead of the model's own.
    """
    compression = compression or model.compression
    merged = None
    if compression.v2v is not None:
        pixels = torch.cat([image if image.dim() == 4 else image[None] for image in images])
        merged = model.get_vision_tower().merge(pixels, compression.v2v)
    inputs = {"attention_mask": attention_mask, "images": images, "query_mask": query_mask}
    return _traced(model, {"input_ids": input_ids.to(model.device), **inputs}, merged, compression)


def _traced(
    model: Any, inputs: Mapping[str, Any], merged: V2VResult | None, compression: CompressionConfig
) -> CompressionTrace:
    output = model(**inputs, compression=compression, use_cache=False, logits_to_keep=1)
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
