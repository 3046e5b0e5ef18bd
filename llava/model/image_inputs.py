"""Images as callers give them to the project's own model: one tensor, lists, arrays, or what a processor returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def image_tensors(images: Any) -> tuple[list[Tensor] | None, list[int] | None]:
    """Images of a batch in reading order, whatever they came as.

    Args:
        images: None, a tensor or array [M, 3, height, width] or [3, height, width], a mapping that holds
            `pixel_values` (a processor's `BatchFeature`), or a sequence of images, each [3, height, width] or
            [crops, 3, height, width]. A sequence of sequences holds the images of each row.

    Returns:
        the images, and how many each row has where that was said; both None without images.

    Raises:
        ValueError: for anything else; says what it is and what to give.
    """
    if images is None:
        return None, None
    if isinstance(images, Mapping) or hasattr(images, "data_format"):
        images = _pixel_values(images)
    if isinstance(images, np.ndarray):
        images = list(images) if images.dtype == object and images.ndim else _from_array(images, "images")
    if isinstance(images, Tensor):
        _check_pixels(images, "images", (3, 4, 5))
        return list(images[None] if images.dim() == 3 else images), None
    if not isinstance(images, (list, tuple)):
        raise ValueError(_refusal("images", images))
    if not any(image is None or isinstance(image, (list, tuple)) for image in images):
        return [_one(image, f"images[{place}]") for place, image in enumerate(images)], None
    rows = [_row(row, f"images[{place}]") for place, row in enumerate(images)]
    return [image for row in rows for image in row], [len(row) for row in rows]


def _row(row: Any, name: str) -> list[Tensor]:
    """Images of one row of a nested list."""
    if row is None:
        return []
    if isinstance(row, (list, tuple)):
        return [_one(image, f"{name}[{place}]") for place, image in enumerate(row)]
    return [_one(row, name)]


def _one(image: Any, name: str) -> Tensor:
    """One image [3, height, width] or [crops, 3, height, width]."""
    if isinstance(image, Mapping):
        image = _pixel_values(image)
    if isinstance(image, np.ndarray):
        image = _from_array(image, name)
    if not isinstance(image, Tensor):
        raise ValueError(_refusal(name, image))
    _check_pixels(image, name, (3, 4))
    return image


def _from_array(array: Any, name: str) -> Tensor:
    """An array of numbers as a tensor."""
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} is an array of {array.dtype}; the model takes floating-point numbers, [3, height, width] "
            "or [count, 3, height, width]. Make them with llava.mm_utils.process_images."
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _pixel_values(mapping: Any) -> Any:
    if "pixel_values" not in mapping:
        raise ValueError(
            f"images is a mapping with {', '.join(map(str, mapping)) or 'nothing'}; pixel_values is missing. Give "
            "what the image processor returns, or its pixel_values."
        )
    return mapping["pixel_values"]


def _check_pixels(image: Tensor, name: str, dimensions: tuple[int, ...]) -> None:
    shape = tuple(image.shape)
    if len(shape) not in dimensions or shape[-3] != 3:
        raise ValueError(
            f"{name} has shape {shape}; an image is [3, height, width] with the channels in front, several are "
            "[count, 3, height, width]. Make them with llava.mm_utils.process_images."
        )
    if not image.is_floating_point():
        raise ValueError(
            f"{name} holds {str(image.dtype).removeprefix('torch.')}, which no image processor has scaled and "
            "normalised; make the pixels with llava.mm_utils.process_images."
        )


def _refusal(name: str, value: Any) -> str:
    return (
        f"{name} is a {type(value).__name__}; the model takes pixels as tensors or arrays. Make them from pictures "
        "with llava.mm_utils.process_images(pictures, image_processor, model.config)."
    )
