"""Images as callers give them to LLaVA on Llama: one tensor, lists, arrays, or what a processor returns.

Shapes: B rows, T columns of the prompt, M images of the batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava.common.anyres import Size, checked_size
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.accepted_inputs import check_normalised
from llava.model.collectives import ranks_must_agree
from llava.model.splice import SplicePlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownImages:
    """The images of a batch that are encoded, in the order of their placeholders.

    Attributes:
        images: [K, 3, height, width] each; K crops, or one image that was not cut.
        sizes: (width, height) of each before it was cut; None where that was not said.
        shown: whether a prompt shows them: others are encoded for the collective calls of other ranks alone.
        stacked: whether they came as one tensor of images that were not cut.
    """

    images: list[Tensor]
    sizes: list[Size | None]
    shown: bool
    stacked: bool


def shown_images(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    images: Any,
    plan: SplicePlan | None,
    training: bool,
    image_sizes: Any = None,
) -> ShownImages:
    """Which images a batch has to encode, in the order of their placeholders.

    A training batch without images still runs tower and projector once: data-parallel ranks gather partitioned
    weights together, so one that holds only text must take part.

    Args:
        input_ids: int64 [B, T] with `IMAGE_TOKEN_INDEX` where images go; not looked at where there is a plan.
        attention_mask: [B, T] or None.
        images: images in a form that `image_tensors` takes.
        plan: plan of the batch, if its collator made one; images are then one for each placeholder.
        training: whether the model is.
        image_sizes: (width, height) of all images in the same order, see `sizes_of`; not looked at where none is cut.

    Raises:
        ValueError: if images, their sizes and placeholders do not fit each other.
    """
    tensors, of_rows = image_tensors(images)
    stacked = bool(tensors) and _is_stacked(images)
    crops = [image if image.dim() == 4 else image[None] for image in tensors]
    if plan is not None:
        used = list(range(len(crops))) if any(plan.counts) else []
    else:
        used = _used(placeholders_of_rows(input_ids, attention_mask), len(crops), of_rows)
    check_one_shape(crops[index].shape[1:] for index in used)
    cut = any(len(image) > 1 for image in crops)
    sizes: list[Size | None] = [*sizes_of(image_sizes, len(crops))] if cut else [None] * len(crops)
    if used:
        return ShownImages([crops[index] for index in used], [sizes[index] for index in used], True, stacked)
    if crops and not training:
        warn_unseen()
    dummy = [crops[0][:1]] if crops and (training or ranks_must_agree()) else []
    return ShownImages(dummy, [None] * len(dummy), False, True)


def placeholders_of_rows(input_ids: Tensor, attention_mask: Tensor | None) -> list[int]:
    """How many placeholders each row of ids [B, T] holds, but for those under a mask [B, T] of 0."""
    is_image = input_ids == IMAGE_TOKEN_INDEX
    if attention_mask is not None:
        is_image &= attention_mask.bool().to(is_image.device)
    per_row: list[int] = is_image.sum(dim=1).tolist()
    return per_row


def check_one_shape(shapes: Iterable[Sequence[int]]) -> None:
    """Raise ValueError where the images of a batch, each [3, height, width], differ."""
    found = sorted({tuple(shape) for shape in shapes})
    if len(found) > 1:
        raise ValueError(
            f"Images of one batch have the shapes {', '.join(map(str, found))}; make all of them with the model's own "
            "image processor."
        )


def _is_stacked(images: Any) -> bool:
    """Whether images came as one tensor or array [M, 3, height, width] or [3, height, width]."""
    given = pixel_values_of(images, "images")
    return isinstance(given, Tensor) and given.dim() in (3, 4)


def sizes_of(image_sizes: Any, count: int) -> Sequence[Size | None]:
    """(width, height) of each image, whatever they came as.

    Args:
        image_sizes: None, a tensor or array [M, 2], or a sequence of pairs, which may come row by row.
        count: M.

    Raises:
        ValueError: if they are not M pairs of whole numbers; says what is needed.
    """
    if image_sizes is None:
        return [None] * count
    found = list(_pairs(image_sizes))
    if len(found) != count:
        raise ValueError(
            f"image_sizes holds {len(found)} sizes, but {count} images were given; give (width, height) of each "
            "before it was cut."
        )
    return found


def _pairs(sizes: Any) -> Iterator[Size]:
    """Pairs of whole numbers, in order; ValueError for anything else."""
    given = sizes.tolist() if isinstance(sizes, Tensor | np.ndarray) else sizes
    if not isinstance(given, list | tuple):
        raise ValueError(f"image_sizes holds a {type(given).__name__}; give (width, height) of each image.")
    if given and not any(isinstance(one, list | tuple | Tensor | np.ndarray) for one in given):
        yield checked_size(given)
    else:
        for one in given:
            yield from _pairs(one)


def _used(per_row: list[int], count: int, of_rows: list[int] | None) -> list[int]:
    """Which of the `count` images stand for the placeholders of each row, in order.

    `of_rows` says how many images each row has, where they were given row by row.
    """
    placeholders = sum(per_row)
    if of_rows is not None:
        advice = "holds {} images; give one image for each placeholder, in reading order"
        return used_of_rows(per_row, [1] * count, of_rows, advice)
    if placeholders == 0:
        return []
    if count == placeholders:
        return list(range(placeholders))
    if count == len(per_row) and max(per_row) <= 1:
        return [row for row, held in enumerate(per_row) if held]
    raise ValueError(
        f"The prompts hold {placeholders} image placeholders in {len(per_row)} rows, but {count} images were "
        "given; give one image for each placeholder, in reading order."
    )


def used_of_rows(per_row: list[int], marks: list[int], of_rows: list[int], advice: str) -> list[int]:
    """Which images placeholders stand for, where images come row by row; one of a row without any is a dummy.

    Args:
        per_row: placeholders of each row.
        marks: placeholders that each image (or video) needs.
        of_rows: images of each row.
        advice: what is said of a row's images that need `{}` placeholders, where the row has others.

    Raises:
        ValueError: if the placeholders of a row are not those of its images.
    """
    if len(of_rows) != len(per_row):
        raise ValueError(
            f"images holds lists for {len(of_rows)} rows, but {len(per_row)} prompts were given; give one each."
        )
    used: list[int] = []
    first = 0
    for row, (marked, given) in enumerate(zip(per_row, of_rows, strict=True)):
        needed = sum(marks[first : first + given])
        if marked != needed and not (marked == 0 and given == 1):
            raise ValueError(
                f"The prompt of row {row} holds {marked} image placeholders, but images[{row}] {advice.format(needed)}."
            )
        used += range(first, first + given) if marked else ()
        first += given
    return used


@functools.cache
def warn_unseen() -> None:
    """Say once that images were given which no prompt shows."""
    logger.warning("Images were given, but no prompt holds an <image>: nobody will see them.")


def image_tensors(images: Any) -> tuple[list[Tensor], list[int] | None]:
    """Images of a batch in reading order, whatever they came as.

    Args:
        images: None, a tensor or array [M, 3, height, width] or [3, height, width], a mapping that holds
            `pixel_values` (a processor's `BatchFeature`), or a sequence of images, each [3, height, width] or
            [crops, 3, height, width]. A sequence of sequences holds the images of each row.

    Returns:
        the images, and how many each row has where that was said.

    Raises:
        ValueError: for anything else; says what it is and what to give.
    """
    if images is None:
        return [], None
    images = pixel_values_of(images, "images")
    if isinstance(images, Tensor):
        _check_pixels(images, "images", (3, 4, 5))
        return list(images[None] if images.dim() == 3 else images), None
    if not isinstance(images, (list, tuple)):
        raise ValueError(_refusal("images", images))
    return of_sequence(images, _one)


def of_sequence(images: Sequence[Any], one: Callable[[Any, str], Tensor]) -> tuple[list[Tensor], list[int] | None]:
    """Images of a sequence in reading order, and how many each row has where it holds sequences, or None for a row.

    Args:
        images: the sequence.
        one: from an image as it came, and its name in messages, to the image.
    """
    if not any(image is None or isinstance(image, list | tuple) for image in images):
        return [one(image, f"images[{place}]") for place, image in enumerate(images)], None
    found: list[Tensor] = []
    counts = []
    for place, row in enumerate(images):
        held = row if isinstance(row, list | tuple) else [] if row is None else [row]
        found += [one(image, f"images[{place}][{number}]") for number, image in enumerate(held)]
        counts.append(len(held))
    return found, counts


def _one(image: Any, name: str) -> Tensor:
    """One image [3, height, width] or [crops, 3, height, width]."""
    pixels = pixel_values_of(image, name)
    if not isinstance(pixels, Tensor):
        raise ValueError(_refusal(name, image))
    _check_pixels(pixels, name, (3, 4))
    return pixels


def _from_array(array: Any, name: str) -> Tensor:
    """An array of numbers as a tensor."""
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} is an array of {array.dtype}; the model takes floating-point numbers, [3, height, width] "
            "or [count, 3, height, width]. Make them with llava.mm_utils.process_images."
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def pixel_values_of(given: Any, name: str) -> Any:
    """What a processor returned without its wrapping, and arrays of numbers as tensors; anything else as it is.

    Raises:
        ValueError: for a mapping without `pixel_values`, or an array of other things than numbers.
    """
    if isinstance(given, Mapping):
        given = _pixel_values(given)
    if isinstance(given, np.ndarray):
        return list(given) if given.dtype == object and given.ndim else _from_array(given, name)
    return given


def _pixel_values(mapping: Any) -> Any:
    if "pixel_values" not in mapping:
        raise ValueError(
            f"images is a mapping with {', '.join(map(str, mapping)) or 'nothing'}; pixel_values is missing. Give "
            "what the image processor returns, or its pixel_values."
        )
    return mapping["pixel_values"]


def _check_pixels(image: Tensor, name: str, dimensions: tuple[int, ...]) -> None:
    shape = tuple(image.shape)
    empty = 0 in (shape[1:] if 5 in dimensions else shape)  # a batch may be of no image
    if len(shape) not in dimensions or shape[-3] != 3 or empty:
        raise ValueError(
            f"{name} has shape {shape}; an image is [3, height, width] with the channels in front, several are "
            "[count, 3, height, width]. Make them with llava.mm_utils.process_images."
        )
    check_normalised(name, image, "make the pixels with llava.mm_utils.process_images")


def _refusal(name: str, value: Any) -> str:
    return (
        f"{name} is a {type(value).__name__}; the model takes pixels as tensors or arrays. Make them from pictures "
        "with llava.mm_utils.process_images(pictures, image_processor, model.config)."
    )
