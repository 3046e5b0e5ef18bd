"""Pixels that are looked up are those that the image processor computes, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from llava.common.clip_pixels import pixel_values
from llava.mm_utils import preprocess_image, process_anyres_image

SIDE = {"height": 28, "width": 28}
PROCESSORS: dict[str, dict[str, Any]] = {
    "as published": {"size": {"shortest_edge": 28}, "crop_size": SIDE},
    "other numbers": {"size": {"shortest_edge": 28}, "crop_size": SIDE, "image_mean": [0.1, 0.5, 0.9]}
    | {"image_std": [0.3, 0.7, 0.11], "rescale_factor": 1 / 127.5},
    "squeezed": {"size": SIDE, "crop_size": SIDE},
    "not cut": {"size": SIDE, "do_center_crop": False},
    "cut smaller": {"size": {"shortest_edge": 32}, "crop_size": SIDE},
    "cut larger": {"size": {"shortest_edge": 20}, "crop_size": SIDE},
    "not scaled": {"do_resize": False, "crop_size": SIDE},
    "other filter": {"size": {"shortest_edge": 28}, "crop_size": SIDE, "resample": Image.Resampling.LANCZOS},
    "not normalised": {"size": {"shortest_edge": 28}, "crop_size": SIDE, "do_normalize": False},
    "not rescaled": {"size": {"shortest_edge": 28}, "crop_size": SIDE, "do_rescale": False},
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_processor(name: str) -> None:
    processor = CLIPImageProcessorPil(**PROCESSORS[name])
    draw = random.Random(name)
    for number in range(12):
        side = draw.randint(1, 90)
        picture = noise(side, side if number % 2 else draw.randint(1, 90), number)
        expected = processor.preprocess(picture, return_tensors="pt")["pixel_values"]
        found = pixel_values([picture], processor)
        assert found.dtype == expected.dtype and torch.equal(found, expected), (name, picture.size)


@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_values_of_all_kinds_at_the_side_of_the_tower(ratio: str) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    for size in ((640, 480), (336, 336), (100, 333)):
        picture = noise(*size)
        found = preprocess_image(picture, processor, ratio)
        if ratio == "pad":
            square = Image.new("RGB", (max(size), max(size)), tuple(int(255 * c) for c in processor.image_mean))
            square.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
            picture = square
        assert torch.equal(found, processor.preprocess(picture, return_tensors="pt")["pixel_values"][0])


def test_crops_come_in_one_tensor() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIDE)
    found = process_anyres_image(noise(70, 50), processor, [[56, 56], [28, 56]])
    assert found.shape == (5, 3, 28, 28) and found.is_contiguous()


def test_another_processor_is_asked_itself() -> None:
    processor = SiglipImageProcessorPil(size=SIDE)
    expected = processor.preprocess([noise(40, 30)], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values([noise(40, 30)], processor), expected)


def test_grey_and_transparent_pictures_are_left_to_the_processor() -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=SIDE)
    for mode in ("L", "RGBA", "P"):
        picture = noise(40, 40).convert(mode)
        expected = processor.preprocess(picture, return_tensors="pt")["pixel_values"]
        assert torch.equal(pixel_values([picture], processor), expected), mode
