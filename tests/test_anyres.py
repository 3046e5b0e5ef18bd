"""Images cut into crops: which canvas, which pixels, and what crops and frames become, beside plain loops and LLaVA."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPImageProcessorPil

from llava import mm_utils
from llava.common import anyres
from llava.common.image_limits import ImageLimitError
from llava.model.crop_merging import MERGE_TYPES, CropMerging, merge_frames, pooled_frames

GOLDEN = Path(__file__).parent / "golden" / "backbones"
OF_1_6 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIZES = [
    (1, 1),
    (336, 336),
    (672, 672),
    (1920, 1080),
    (37, 1999),
    (1999, 37),
    (1, 5000),
    (5000, 1),
    (50, 37),
    (801, 800),
]


def recorded(kind: str) -> list[Any]:
    folders = sorted((GOLDEN / kind).iterdir())
    assert folders
    return [pytest.param(folder, id=folder.name) for folder in folders]


def case(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    parts = (load_file(folder / f"{part}.safetensors") for part in ("inputs", "outputs"))
    return json.loads((folder / "case.json").read_text()), *parts


def processor(side: int) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.mark.parametrize("folder", recorded("anyres_choice"))
def test_canvas_grid_map_and_tokens_are_those_of_llava(folder):
    settings, inputs, outputs = case(folder)
    pinpoints, side, patches = (settings[name] for name in ("pinpoints", "crop_size", "patches_per_side"))
    merging = CropMerging.of("spatial_unpad", "anyres", pinpoints, side, patches)
    for number, size in enumerate(inputs["sizes"].tolist()):
        best = mm_utils.select_best_resolution(size, anyres.canvases_of(pinpoints, side))
        grid = mm_utils.get_anyres_image_grid_shape(size, pinpoints, side)
        crops = 1 + grid[0] * grid[1]
        found = (best, grid, merging.map_shape(size, grid), merging.count(crops, size))
        wanted = (
            outputs[name][number].tolist() for name in ("best", "grid", "map_after_unpad", "tokens_spatial_unpad")
        )
        assert [list(value) if isinstance(value, tuple) else value for value in found] == list(wanted), size


@pytest.mark.parametrize("folder", recorded("anyres_pixels"))
def test_pixels_of_crops_are_those_of_llava(folder):
    settings, inputs, outputs = case(folder)
    for number in range(len(settings["sizes"])):
        image = Image.fromarray(inputs[f"image_{number}_u8"].numpy())
        pixels = mm_utils.process_anyres_image(image, processor(settings["crop_size"]), settings["pinpoints"])
        torch.testing.assert_close(pixels, outputs[f"crops_{number}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", recorded("next_merge"))
def test_merged_crops_are_those_of_llava(folder):
    settings, inputs, outputs = case(folder)
    names = ("mm_patch_merge_type", "image_aspect_ratio", "image_grid_pinpoints", "crop_size", "patches_per_side")
    merging = CropMerging.of(*(settings[name] for name in names))
    for number, size in enumerate(inputs["image_sizes"].tolist()):
        features = inputs[f"features_{number}"]
        merged = merging.merge(features, size, inputs["image_newline"])
        torch.testing.assert_close(merged, outputs[f"merged_{number}"], rtol=0, atol=1e-5)
        assert merging.count(len(features), size) == len(merged) == settings["tokens"][number]


@pytest.mark.parametrize("folder", recorded("next_video"))
def test_merged_frames_are_those_of_llava_next(folder):
    settings, inputs, outputs = case(folder)
    frames = pooled_frames(inputs["features"], settings["mm_spatial_pool_mode"])
    merged = merge_frames(
        frames, settings["mm_patch_merge_type"], settings["mm_newline_position"], inputs["image_newline"]
    )
    torch.testing.assert_close(merged, outputs["merged"], rtol=0, atol=1e-5)


def merged_in_loops(features: Tensor, size: tuple[int, int], grid: tuple[int, int], patches: int, newline: Tensor):
    """`spatial_unpad` patch by patch: what LLaVA computes, written down from its description."""
    across, down = grid
    columns, rows = across * patches, down * patches
    top = left = 0
    if size[0] / size[1] > columns / rows:
        top = (rows - int(size[1] * (columns / size[0]))) // 2
    else:
        left = (columns - int(size[0] * (rows / size[1]))) // 2
    found = list(features[0])
    for row in range(top, rows - top):
        for column in range(left, columns - left):
            crop = 1 + (row // patches) * across + column // patches
            found.append(features[crop, (row % patches) * patches + column % patches])
        found.append(newline)
    return torch.stack(found)


@pytest.mark.parametrize("size", SIZES)
def test_merging_agrees_with_plain_loops(size):
    merging = CropMerging.of("spatial_unpad", "anyres", OF_1_6, 336, 4)
    grid = anyres.grid_of(size, OF_1_6, 336)
    features, newline = torch.randn(1 + grid[0] * grid[1], 16, 3), torch.randn(3)
    wanted = merged_in_loops(features, size, grid, 4, newline)
    assert torch.equal(merging.merge(features, size, newline), wanted)
    assert merging.count(len(features), size) == len(wanted)


def test_every_way_to_merge_gives_as_many_tokens_as_it_counts():
    for merge_type in MERGE_TYPES:
        for ratio in ("anyres", "anyres_max_1", "anyres_max_4"):
            merging = CropMerging.of(merge_type, ratio, OF_1_6, 336, 3)
            for size in SIZES:
                across, down = anyres.grid_of(size, OF_1_6, 336)
                for crops in (1, 1 + across * down):
                    merged = merging.merge(torch.randn(crops, 9, 2), size, torch.zeros(2))
                    assert merging.count(crops, size) == len(merged), (merge_type, ratio, size)
                    assert len(merged) > 0 or "nobase" in merge_type


def test_published_numbers_of_tokens():
    merging = CropMerging.of("spatial_unpad", "anyres", OF_1_6, 336, 24)
    assert merging.count(5, (672, 672)) == 2928
    assert merging.count(5, (1920, 1080)) == 576 + 28 * 49
    assert (merging.count(3, (336, 336)), merging.count(3, (1, 5000)), merging.count(3, (5000, 1))) == (1176, 624, 576)
    assert merging.count(1) == 577


def test_crops_that_do_not_belong_to_the_size_are_refused():
    merging = CropMerging.of("spatial", "anyres", OF_1_6, 336, 4)
    with pytest.raises(ValueError, match=r"came as 4 crops, but one of .672, 672. .* is cut into 5; give image_sizes"):
        merging.merge(torch.randn(4, 16, 2), (672, 672))
    with pytest.raises(ValueError, match="came without image_sizes"):
        merging.merge(torch.randn(5, 16, 2))
    with pytest.raises(ValueError, match="mm_patch_merge_type is 'spatial_pad'; accepted are flat, spatial"):
        CropMerging.of("spatial_pad", "anyres", OF_1_6, 336, 4)
    for digits in (-1, 16, 10**30):
        with pytest.raises(ValueError, match=f"image_unpad_digits is .*{str(digits)[:3]}"):
            CropMerging.of("spatial_unpad", "anyres", OF_1_6, 336, 4, digits=digits)
    with pytest.raises(ValueError, match="needs image_newline"):
        CropMerging.of("spatial_unpad", "pad", None, 336, 4).merge(torch.randn(1, 16, 2))


def test_frames_are_pooled_by_two_and_other_modes_refused():
    features = torch.randn(2, 25, 3)
    assert pooled_frames(features, "average").shape == (2, 4, 3)
    assert pooled_frames(features, "bilinear").shape == (2, 9, 3)
    average = features.view(2, 5, 5, 3)[:, :2, :2].mean(dim=(1, 2))
    torch.testing.assert_close(pooled_frames(features, "average")[:, 0], average)
    with pytest.raises(ValueError, match="mm_spatial_pool_mode is 'median'; accepted are average, max, bilinear"):
        pooled_frames(features, "median")
    with pytest.raises(ValueError, match="26 features, which make no square"):
        pooled_frames(torch.randn(2, 26, 3), "max")
    with pytest.raises(ValueError, match="mm_newline_position is 'row'; accepted are one_token, grid, frame, no_token"):
        merge_frames(features, "spatial_unpad", "row")
    assert len(merge_frames(features, "spatial", "one_token")) == 50  # a newline at the end is `unpad`'s


@pytest.mark.parametrize(
    ("pinpoints", "wanted"),
    [
        (OF_1_6, [tuple(pair) for pair in OF_1_6]),
        (str(OF_1_6), [tuple(pair) for pair in OF_1_6]),
        ("[(336, 672), (672, 336)]", [(336, 672), (672, 336)]),
        ("((336,672),)", [(336, 672)]),
        ("(1x1),...,(2x3)", [(336, 336), (336, 672), (336, 1008), (672, 336), (672, 672), (672, 1008)]),
        (" (2x1), ..., (3x1) ", [(672, 336), (1008, 336)]),
    ],
)
def test_canvases_are_read_from_lists_and_texts(pinpoints, wanted):
    assert anyres.canvases_of(pinpoints, 336) == wanted


@pytest.mark.parametrize(
    "pinpoints",
    [
        None,
        "",
        "[]",
        [],
        [[336]],
        [[336, 336.0]],
        [[True, 336]],
        ["336", "672"],
        "[[336, 672]",
        "__import__('os')",
        "(1x1),(2x2)",
        "(2x2),...,(1x1)",
        "(1x1),...,(99999x99999)",
        "[" * 70000,
        [[336, 336]] * 1025,
        336,
        {"a": 1},
    ],
)
def test_what_is_no_list_of_canvases_is_refused_in_words(pinpoints):
    with pytest.raises(ValueError, match=r"image_grid_pinpoints is .* must be a list of \[width, height\]"):
        anyres.canvases_of(pinpoints, 336)


@pytest.mark.parametrize(
    ("canvas", "said"),
    [([300, 336], "do not fill"), ([0, 336], "do not fill"), ([336000, 336000], "more than the 89478485 pixels")],
)
def test_canvases_that_crops_do_not_fill_or_memory_does_not_hold_are_refused(canvas, said):
    with pytest.raises(ValueError, match=f"image_grid_pinpoints holds {canvas[0]} x {canvas[1]}.*{said}"):
        anyres.canvases_of([canvas], 336)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (2.5, 3), "ab", None, (1, 2, 3)])
def test_an_image_of_no_size_is_refused(size):
    with pytest.raises(ValueError, match=r"The size of an image is .*width, height"):
        anyres.best_canvas(size, [(336, 336)])


@pytest.mark.parametrize("size", SIZES)
def test_thin_and_tiny_images_are_cut_like_any_other(size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=anyres.default_pinpoints(28))
    (pixels,) = mm_utils.process_images([image], processor(28), config)
    across, down = anyres.grid_of(size, config.image_grid_pinpoints, 28)
    assert pixels.shape == (1 + across * down, 3, 28, 28) and pixels.isfinite().all()
    if math.prod(size) > 1:
        assert pixels.std() > 0


def test_images_of_one_grid_are_stacked_and_others_come_as_a_list():
    config = SimpleNamespace(image_aspect_ratio="anyres_max_2", image_grid_pinpoints="(1x1),...,(2x2)")
    squares = [Image.new("RGB", (56, 56)), Image.new("RGB", (60, 60))]
    assert mm_utils.process_images(squares, processor(28), config).shape == (2, 5, 3, 28, 28)
    mixed = mm_utils.process_images([squares[0], Image.new("RGB", (56, 28))], processor(28), config)
    assert [len(pixels) for pixels in mixed] == [5, 3]
    assert mm_utils.image_sizes(squares, config) == [(56, 56), (60, 60)]


def test_sizes_are_those_of_upright_images():
    turned = Image.new("RGB", (30, 20))
    turned.getexif()[0x0112] = 6
    assert mm_utils.image_sizes([turned], SimpleNamespace()) == [(20, 30)]
    assert mm_utils.image_sizes([turned], SimpleNamespace(image_opening="llava")) == [(30, 20)]


def test_an_image_too_high_to_be_squeezed_is_refused_before_it_takes_memory():
    with pytest.raises(ImageLimitError, match="1 x 300000 become 100800000 pixels with image_aspect_ratio anyres"):
        mm_utils.process_anyres_image(Image.new("RGB", (1, 300_000)), processor(336), OF_1_6)


def test_an_unknown_shape_of_images_is_refused():
    for ratio in ("anyres_max_", "anyres_max_0", "anyres_9", "highres", "crop_split"):
        with pytest.raises(ValueError, match=f"image_aspect_ratio is '{ratio}'; accepted are square, pad, anyres"):
            mm_utils.preprocess_image(Image.new("RGB", (5, 5)), processor(28), ratio)
