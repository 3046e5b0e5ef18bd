"""Crops of images on their way into LLaVA: what a data worker holds, how many tokens they become, and their features.

Without V2V the crops of an image are merged as the model was made to (`llava.model.crop_merging`). V2V shortens every
crop by itself and takes the place of what else is done to the patch map: nothing is unpadded, pooled or shrunk, and no
newline stands behind a row, as in the released code (paper Table 13: 850 + 175 tokens over five crops). An image that
was not cut gets its one newline all the same.

Shapes: M images, K crops of one, P patches of a crop, N0 tokens that V2V leaves of it, p patches on a side, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.common.anyres import Size
from llava.compression.config import V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.collectives import ranks_must_agree
from llava.model.crop_merging import CropMerging
from llava.model.splice import PlanSettings


@dataclass(frozen=True)
class Crops:
    """An image that was cut.

    Attributes:
        pixels: [K, 3, S, S], the squeezed whole first.
        size: (width, height) before it was cut.
    """

    pixels: Tensor
    size: Size


@dataclass(frozen=True)
class CropPlanSettings(PlanSettings):
    """Settings of plans for images that are cut; `tokens_per_image` is that of a crop.

    Attributes:
        merging: how the crops of an image become one sequence.
        v2v: whether V2V shortens them.
    """

    merging: CropMerging | None = None
    v2v: bool = False

    @property
    def fixed(self) -> int | None:
        """None: it depends on the image's size."""
        return None

    def counts(self, medium: Any) -> list[int]:
        """As in `PlanSettings`, for `Crops`, or pixels [3, S, S] of an image that was not cut."""
        assert self.merging is not None
        crops, size = (len(medium.pixels), medium.size) if isinstance(medium, Crops) else (1, None)
        if not self.v2v:
            return [self.merging.count(crops, size)]
        left_out = crops > 1 and self.merging.without_base
        return [(crops - left_out) * self.tokens_per_image + (crops == 1 and self.merging.newline)]


def crop_merging(config: Any, tower: Any) -> CropMerging:
    """How a LLaVA's configuration merges the crops that its tower sees.

    Raises:
        ValueError: if there is no such way, or no canvas to choose from.
    """
    return CropMerging.of(
        config.mm_patch_merge_type,
        config.image_aspect_ratio,
        config.image_grid_pinpoints,
        tower.config.image_size,
        math.isqrt(tower.num_patches),
        tower.tokens_per_image(None),
        config.image_unpad_digits,
    )


def encode_crops(
    model: Any, images: Sequence[Tensor], sizes: Sequence[Size | None], v2v: V2VConfig | None, stacked: bool
) -> list[Tensor]:
    """Visual tokens [n, D] of each image, in the language model's width.

    Args:
        model: a LLaVA with a tower.
        images: [K, 3, S, S] each.
        sizes: sizes of the images before they were cut; None where that was not said.
        v2v: None merges nothing.
        stacked: whether the images came as one tensor of images that were not cut: they get no newline then.

    Raises:
        ValueError: if a size is needed and missing, or does not fit the number of crops.
    """
    tower = model.require_tower()
    pixels = torch.cat(list(images)).to(tower.device)
    raster = v2v is not None and v2v.crop_order == "raster" and max(map(len, images)) > 1
    result: V2VResult | None = None
    if v2v is not None and raster:
        result = tower.merge(pixels, v2v)
        tokens: Any = model.project(result.tokens)  # [M * K, N0, D]
    else:
        tokens = model.encode_images(pixels, v2v)  # as many [n, D]
    if model.config.mm_patch_merge_type == "flat" and not raster:  # as any tower gives them, also as many as it likes
        crops = iter(tokens)
        return [torch.cat([next(crops) for _ in image]) for image in images]
    merging, newline = crop_merging(model.config, tower), model.get_model().image_newline
    found, first = [], 0
    for image, size in zip(images, sizes, strict=True):
        here = slice(first, first + len(image))
        first += len(image)
        ends = [merging.end(newline, tokens[0])] if merging.newline and len(image) == 1 and not stacked else []
        if v2v is None and len(image) > 1:
            found.append(merging.merge(tokens[here], size, newline))
        elif result is not None and len(image) > 1:
            order = raster_order(result, here, merging.grid(size, len(image)), merging.patches)
            skipped = result.tokens.shape[1] if merging.without_base else 0
            found.append(tokens[here].flatten(0, 1)[order[skipped:]])
        else:
            left_out = len(image) > 1 and merging.without_base
            found.append(torch.cat([*tokens[here.start + left_out : here.stop], *ends]))
    if merging.newline and (model.training or ranks_must_agree()):
        # V2V and text alone use no newline; it takes part all the same, for ranks reduce and gather weights together.
        found[0] = torch.cat([found[0], merging.end(newline, found[0])])[:-1]
    return found


def raster_order(result: V2VResult, crops: slice, grid: Size, patches: int) -> Tensor:
    """Where the tokens of an image's crops go in the released order of V2V.

    First the squeezed whole as it comes, then the kept patches of all other crops in the raster of the whole canvas,
    then the CLS token of each crop, then their contextual tokens, crop by crop.

    Args:
        result: tokens of the crops of several images.
        crops: those of this image, the squeezed whole first.
        grid: its crops (across, down).
        patches: p.

    Returns:
        int64 [K * N0], into the crops' tokens laid end to end.
    """
    source, kept = result.source[crops], result.plan.dominant.shape[1]
    slots = torch.arange(source.numel(), device=source.device).view_as(source)  # [K, N0]
    base, others = slots[0], slots[1:]
    behind_cls = slice(int(result.has_cls), int(result.has_cls) + kept)
    patch = source[1:, behind_cls]  # [K - 1, kept]
    crop = torch.arange(len(others), device=source.device)[:, None]
    row = crop // grid[0] * patches + patch // patches
    column = crop % grid[0] * patches + patch % patches
    raster = (row * (grid[0] * patches) + column).flatten().argsort()
    parts = [others[:, behind_cls].flatten()[raster], others[:, : behind_cls.start], others[:, behind_cls.stop :]]
    return torch.cat([base, *(part.flatten() for part in parts)])
