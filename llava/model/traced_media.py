"""Which patches each visual token of a prompt stands for, and what these patches show: pictures for people who look.

Every visual token has its place on a picture: one of a grid of patches over an image, a crop, a frame, or over the map
that the crops of an image are joined to, without its padding, as the packing in front of the language model leaves it.
Tokens that show nothing (CLS, newlines) have none.
Shapes: K crops of an image (the squeezed whole first), S pixels on a side of a crop, p patches on a side, R rows and C
columns of a grid.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.common.anyres import Size
from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.v2v import PatchRole, V2VResult
from llava.model.crop_merging import CropMerging
from llava.model.crops import Crops, crop_merging
from llava.model.splice import PlanSettings
from llava.model.trace import places_in_raster, tower_of, units_of

_WHOLE = "all of it, small"


@dataclass(frozen=True)
class TracedUnit:
    """A grid of patches over a picture, and what became of each.

    Attributes:
        rows, columns: R and C; each patch takes an R-th of the picture's height and a C-th of its width. Where patches
            are merged two by two, pooled or shrunk in front of V2V, the tokens that come of that.
        roles: a `PatchRole` for each of the R * C patches, in reading order.
        tokens: number of the visual token that each patch became or joined; -1 where it was dropped by V2V.
        pixels: [3, height, width] of the picture, as the tower's processor normalised it.
        part: which part of its image or video that is, such as `crop 2 of 4`; "" for all of it.
    """

    rows: int
    columns: int
    roles: list[int]
    tokens: list[int]
    pixels: Tensor
    part: str = ""


@dataclass(frozen=True)
class TracedMedium:
    """An image or a video.

    Attributes:
        units: its pictures.
        count: its visual tokens, those that show nothing among them.
    """

    units: list[TracedUnit]
    count: int

    def behind(self, start: int) -> TracedMedium:
        """The same, its tokens numbered from `start` on."""
        units = [
            dataclasses.replace(unit, tokens=[start + token if token >= 0 else -1 for token in unit.tokens])
            for unit in self.units
        ]
        return TracedMedium(units, self.count)


@torch.no_grad()
def traced_media(
    model: Any, inputs: Mapping[str, Any], media: Sequence[Any], compression: CompressionConfig
) -> list[TracedMedium]:
    """What became of the patches of everything that a prompt shows, in reading order.

    Args:
        model: model of LLaVA's own format, or of a family that says `traced_media`.
        inputs: arguments of its forward for one prompt, without labels.
        media: what it shows, in reading order, as the family prepared it.
        compression: the budget, as the model takes it (`checked`).

    Returns:
        tokens are numbered as they enter the language model, through all media.

    Raises:
        ValueError: if it cannot be said which patches a visual token stands for.
    """
    if hasattr(model, "named_towers"):
        settings = model.plan_settings(compression)
        found = [_medium_of_squares(model, medium, compression, settings) for medium in media]
    elif hasattr(model, "traced_media"):
        given = {name: inputs.get(name) for name in model.visual_inputs}
        left = {kind: iter(held) for kind, held in model.traced_media(compression, given).items()}
        found = [next(left[medium.kind]) for medium in media]
    else:
        raise ValueError(
            f"This {model.config.model_type} does not say which patches its visual tokens stand for (traced_media), so "
            "they cannot be shown on its pictures; what each layer kept is counted all the same."
        )
    placed, start = [], 0
    for medium in found:
        placed.append(medium.behind(start))
        start += medium.count
    return placed


# === Pictures and their patches ===


def plain_unit(pixels: Tensor, shape: Size, tokens: Sequence[int], part: str = "") -> TracedUnit:
    """A picture [3, height, width] of which every patch is a token of its own.

    Args:
        pixels: what the patches see.
        shape: R and C.
        tokens: the token of each patch, in reading order.
        part: as in `TracedUnit`.
    """
    return TracedUnit(*shape, [int(PatchRole.DOMINANT)] * len(tokens), list(tokens), pixels, part)


def merged_unit(
    pixels: Tensor, shape: Size, merged: V2VResult, number: int, places: Sequence[int], part: str = ""
) -> TracedUnit:
    """A picture [3, height, width] that V2V merged.

    Args:
        pixels: what the patches see.
        shape: R and C.
        merged: what V2V made of several pictures.
        number: which of them it is.
        places: number of each token that V2V made of it among those of its image or video.
        part: as in `TracedUnit`.
    """
    tokens = [places[token] if token >= 0 else -1 for token in merged.target[number].tolist()]
    return TracedUnit(*shape, merged.roles[number].tolist(), tokens, pixels, part)


def crop_parts(count: int) -> list[str]:
    """Names of the crops of an image, the squeezed whole first."""
    return [""] if count == 1 else [_WHOLE, *(f"crop {number} of {count - 1}" for number in range(1, count))]


def frame_parts(count: int) -> list[str]:
    """Names of the frames of a video."""
    return [f"frame {number} of {count}" for number in range(1, count + 1)]


def what_patches_see(pixels: Tensor, side: int, patch: int) -> Tensor:
    """Pixels [..., S, S] without those at the right and lower edge that are too few for a patch.

    Args:
        pixels: of squares.
        side: p.
        patch: pixels on a side of a patch.
    """
    return pixels[..., : side * patch, : side * patch]


@dataclass(frozen=True)
class JoinedCrops:
    """How the crops of an image are joined to one map of tokens.

    Attributes:
        grid: crops across and down.
        side: p.
        patch: pixels on a side of a patch.
        seen: rows and columns of the patch map of the whole canvas that are left when its padding is cut away.
        shape: R and C, tokens that come of these, fewer where the map is shrunk.
        newline: whether a token that shows nothing stands behind each row.
    """

    grid: Size
    side: int
    patch: int
    seen: tuple[slice, slice]
    shape: Size
    newline: bool

    @property
    def count(self) -> int:
        """Visual tokens of the map."""
        return self.shape[0] * (self.shape[1] + self.newline)

    def units(self, crops: Tensor, first: int) -> list[TracedUnit]:
        """The map over what it shows, as one unit; none where only newlines are left of it.

        Args:
            crops: [across * down, 3, S, S] without the squeezed whole.
            first: number of its first token.
        """
        rows, columns = self.shape
        if not rows * columns:
            return []
        whole = what_patches_see(crops, self.side, self.patch).unflatten(0, self.grid[::-1])
        # [down, across, 3, p * patch, p * patch]
        whole = whole.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # [3, down * p * patch, across * p * patch]
        down, across = (slice(lines.start * self.patch, lines.stop * self.patch) for lines in self.seen)
        width = columns + self.newline
        tokens = [first + row * width + column for row in range(rows) for column in range(columns)]
        part = "its crop" if len(crops) == 1 else f"its {len(crops)} crops, joined"
        return [plain_unit(whole[:, down, across], self.shape, tokens, part)]


# === Models of LLaVA's own format ===


def _medium_of_squares(model: Any, medium: Any, compression: CompressionConfig, settings: PlanSettings) -> TracedMedium:
    """An image, its crops, or the frames of a video, for a tower that sees squares of one size."""
    tower, squares = tower_of(model, medium), units_of(medium)
    merging = crop_merging(model.config, tower) if isinstance(medium, Crops) and len(squares) > 1 else None
    if compression.v2v is not None:
        found = _merged_squares(medium, tower, merging, compression.v2v)
    elif merging is not None and merging.merge_type != "flat":
        found = _joined_squares(medium, tower, merging)
    else:
        found = _plain_squares(medium, tower)
    count = sum(settings.counts(medium))
    if not 0 <= count - found.count <= (len(squares) == 1):  # a newline stands behind an image that was not cut
        raise ValueError(
            f"An image or video brings {count} visual tokens, but its patches account for {found.count}, so that they "
            "cannot be shown on it; what each layer kept is counted all the same."
        )
    return TracedMedium(found.units, count)


def _merged_squares(medium: Any, tower: Any, merging: CropMerging | None, v2v: V2VConfig) -> TracedMedium:
    """Squares that V2V merges one by one, wherever their tokens stand among those of the medium."""
    squares, parts = units_of(medium), _parts(medium)
    merged = tower.merge(torch.stack(squares).to(tower.device), v2v)  # of [M, 3, S, S]
    each, side = merged.tokens.shape[1], math.isqrt(merged.num_patches)
    count, without = len(squares) * each, int(merging is not None and merging.without_base)
    places = list(range(count))
    if merging is not None and v2v.crop_order == "raster":
        places = places_in_raster(medium, merging, merged, slice(0, len(squares)))
    units = [
        merged_unit(
            square,
            (side, side),
            merged,
            number,
            [place - without * each for place in places[number * each : (number + 1) * each]],
            part,
        )
        for number, (square, part) in enumerate(zip(squares, parts, strict=True))
        if number >= without
    ]
    return TracedMedium(units, count - without * each)


def _joined_squares(medium: Crops, tower: Any, merging: CropMerging) -> TracedMedium:
    """Crops that are joined to one map, behind the squeezed whole."""
    grid, side = merging.grid(medium.size, len(medium.pixels)), merging.patches
    shape = merging.map_shape(medium.size, grid)
    patch = tower.config.patch_size
    joined = JoinedCrops(grid, side, patch, merging.seen(medium.size, grid), shape, merging.newline)
    first = 0 if merging.without_base else side**2
    whole = what_patches_see(medium.pixels[0], side, patch)
    base = [plain_unit(whole, (side, side), range(first), _WHOLE)] if first else []
    return TracedMedium([*base, *joined.units(medium.pixels[1:], first)], first + joined.count)


def _plain_squares(medium: Any, tower: Any) -> TracedMedium:
    """Squares whose patches are all tokens, CLS in front of each where the tower gives it too."""
    squares, patches = units_of(medium), tower.num_patches
    each, side = tower.tokens_per_image(None), math.isqrt(patches)
    units = [
        plain_unit(square, (side, side), range(first + each - patches, first + each), part)
        for first, square, part in zip(range(0, len(squares) * each, each), squares, _parts(medium), strict=True)
    ]
    return TracedMedium(units, len(squares) * each)


def _parts(medium: Any) -> list[str]:
    """Names of the squares of a medium."""
    if isinstance(medium, Crops):
        return crop_parts(len(medium.pixels))
    return frame_parts(medium.shape[1]) if medium.dim() == 4 else [""]
