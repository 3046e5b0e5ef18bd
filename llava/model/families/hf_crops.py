"""Crops of images as transformers' LLaVA-NeXT and LLaVA-OneVision hold them, and what became of their patches.

Shapes: K crops of an image (the small picture of the whole first), p patches on a side of a crop, n tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from llava.compression.v2v import V2VResult
from llava.model.traced_media import (
    JoinedCrops,
    TracedMedium,
    TracedUnit,
    crop_parts,
    merged_unit,
    plain_unit,
    what_patches_see,
)


def without_padding(pixels: Tensor, crops: Sequence[int]) -> Tensor:
    """Crops [all K, 3, height, width] of images; in a tensor [images, most K, ...] those with fewer are padded.

    Raises:
        ValueError: if there are not the K crops of each image.
    """
    padded = pixels.dim() == 5
    if len(pixels) != (len(crops) if padded else sum(crops)) or (padded and pixels.shape[1] < max(crops, default=0)):
        raise ValueError(
            f"pixel_values has shape {tuple(pixels.shape)}, but images of image_sizes are cut into {list(crops)} "
            "crops; give both as the model's own processor returns them."
        )
    if not padded:
        return pixels
    return torch.cat([image[:count] for image, count in zip(pixels, crops, strict=True)])


def joined_crops(crops: Tensor, size: Tensor, newlines: Tensor, config: Any) -> TracedMedium:
    """An image without V2V, whose crops are joined behind the small picture.

    Args:
        crops: [K, 3, height, width].
        size: int64 [2], height and width of the image.
        newlines: bool [n], which of its tokens are newlines, as the model's own packing has them.
        config: configuration of the model.
    """
    vision, first_part = config.vision_config, crop_parts(len(crops))[0]
    side, patch = vision.image_size // vision.patch_size, vision.patch_size
    whole = plain_unit(what_patches_see(crops[0], side, patch), (side, side), range(side**2), first_part)
    if len(crops) == 1:
        return TracedMedium([whole], len(newlines))
    down, across = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
    rows = int(newlines.sum())
    columns = (len(newlines) - side**2) // max(rows, 1) - 1
    seen = _seen(down * side, across * side, size)
    joined = JoinedCrops((across, down), side, patch, seen, (rows, columns), newline=True)
    return TracedMedium([whole, *joined.units(crops[1:], side**2)], len(newlines))


def merged_crops(
    crops: Tensor,
    merged: Sequence[tuple[V2VResult, int]],
    side: int,
    patch: int,
    newline: bool,
    order: Sequence[int] | None = None,
) -> TracedMedium:
    """An image of which V2V merged each crop.

    Args:
        crops: [K, 3, height, width].
        merged: for each crop what V2V made of several, and which of them it is.
        side: p.
        patch: pixels on a side of a patch.
        newline: whether a newline stands behind it.
        order: where the tokens, crop by crop, stand among those of the image; None leaves them as they are.
    """
    counts = [result.tokens.shape[1] for result, _ in merged]
    places = list(range(sum(counts))) if order is None else list(order)
    units: list[TracedUnit] = []
    first = 0
    for crop, (result, number), count, part in zip(crops, merged, counts, crop_parts(len(crops)), strict=True):
        shown = what_patches_see(crop, side, patch)
        units.append(merged_unit(shown, (side, side), result, number, places[first : first + count], part))
        first += count
    return TracedMedium(units, first + newline)


def _seen(rows: int, columns: int, size: Tensor) -> tuple[slice, slice]:
    """Rows and columns of a patch map that transformers leaves when it cuts away the padding.

    Args:
        rows, columns: of the map.
        size: int64 [2], height and width of the image.
    """
    left = unpad_image(torch.arange(rows * columns).view(1, rows, columns), size)[0]  # [rows left, columns left]
    if not left.numel():
        return slice(0, 0), slice(0, 0)
    (top, first), (bottom, last) = (divmod(int(left[corner]), columns) for corner in ((0, 0), (-1, -1)))
    return slice(top, bottom + 1), slice(first, last + 1)
