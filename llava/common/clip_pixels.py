"""The pixels that a CLIP image processor makes, bit for bit, in half of its time.

A processor scales the 8 bits of a channel to [0, 1] and normalises them in passes over floating-point arrays. As a
channel has 256 values, its results for these are looked up instead: they are asked of the processor itself, once. A
square picture that becomes a square is scaled by Pillow directly, without the copies that turning it into an array and
back makes. Whatever else a processor does is left to it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

_VALUES = 256


def pixel_values(pictures: Sequence[Image.Image], processor: Any) -> Tensor:
    """What `processor.preprocess(pictures, return_tensors="pt")["pixel_values"]` is, [M, 3, H, W].

    Args:
        pictures: pictures in RGB.
        processor: image processor of transformers, or one with its interface.

    Raises:
        ValueError: as the processor, for example where the pictures become of different sizes.
    """
    if not _is_known(processor):
        return _of_processor(pictures, processor)
    table = _table(
        float(processor.rescale_factor), tuple(processor.image_mean), tuple(processor.image_std)
    )  # float32 [3, 256]
    side = _side_of_squares(processor)
    planes = [_planes(picture, processor, side) for picture in pictures]  # uint8 [3, H, W] each
    if len({plane.shape for plane in planes}) != 1:
        return _of_processor(pictures, processor)
    result = np.empty((len(planes), *planes[0].shape), np.float32)
    for values, plane in zip(result, planes, strict=True):
        for channel in range(3):
            np.take(table[channel], plane[channel], out=values[channel], mode="clip")
    return torch.from_numpy(result)


def _of_processor(pictures: Sequence[Image.Image], processor: Any) -> Tensor:
    made: Tensor = processor.preprocess(list(pictures), return_tensors="pt")["pixel_values"]
    return made


def _is_known(processor: Any) -> bool:
    """Whether a processor ends with the arithmetic that is looked up here, on three channels of 8 bits."""
    if type(processor) is not CLIPImageProcessorPil or processor.do_pad:
        return False
    mean, std = processor.image_mean, processor.image_std
    of_channels = all(isinstance(values, list | tuple) and len(values) == 3 for values in (mean, std))
    return bool(processor.do_rescale and processor.do_normalize and of_channels)


def _side_of_squares(processor: Any) -> int | None:
    """The side that a square picture of any size gets; None where it does not become a square of a known one."""
    if not processor.do_resize:
        return None
    size, crop = processor.size, processor.crop_size
    side = size.get("shortest_edge") if not size.get("longest_edge") else None
    if not side and size.get("height") == size.get("width"):
        side = size.get("height")
    if side and processor.do_center_crop and (crop.get("height"), crop.get("width")) != (side, side):
        return None
    return int(side) if side else None


def _planes(picture: Image.Image, processor: Any, side: int | None) -> NDArray[np.uint8]:
    """uint8 [3, H, W]: a picture scaled and cut as the processor does it."""
    if side is not None and picture.width == picture.height and picture.mode == "RGB":
        scaled = picture.resize((side, side), resample=processor.resample)
        return np.asarray(scaled).transpose(2, 0, 1)
    made: NDArray[np.uint8] = processor.preprocess(picture, do_rescale=False, do_normalize=False)["pixel_values"][0]
    return made


@functools.lru_cache(maxsize=16)
def _table(rescale_factor: float, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """float32 [3, 256]: what becomes of each value of each channel, as the processor computes it."""
    every = np.broadcast_to(np.arange(_VALUES, dtype=np.uint8)[None, :, None], (3, _VALUES, 1))
    made = CLIPImageProcessorPil().preprocess(
        every,
        do_resize=False,
        do_center_crop=False,
        do_convert_rgb=False,
        rescale_factor=rescale_factor,
        image_mean=list(mean),
        image_std=list(std),
        input_data_format="channels_first",
        return_tensors="np",
    )
    table: NDArray[np.float32] = made["pixel_values"][0, ..., 0]
    return table
