"""From the features of an image's crops, or of a video's frames, to one sequence of visual tokens (LLaVA-NeXT).

Shapes: K crops of an image (the squeezed whole first), F frames of a video, p patches on a side of a crop, R rows and
C columns of the patch map of a canvas, D width, n visual tokens.

Sources: haotian-liu/LLaVA, llava/model/llava_arch.py; LLaVA-VL/LLaVA-NeXT, the same file, for `nobase`, `maxpool2x2`,
`anyres_max_N` and videos.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.common.anyres import Size, best_canvas, canvases_of, is_anyres, most_crops, unpadded
from llava.common.shown import shown

MERGE_TYPES = (
    "flat",
    "spatial",
    "spatial_unpad",
    "spatial_nobase",
    "spatial_unpad_nobase",
    "spatial_maxpool2x2",
    "spatial_maxpool2x2_nobase",
)
"""`mm_patch_merge_type`s.

`flat`: all crops behind one another. `spatial`: the squeezed whole, then the map of the canvas row by row. `_unpad`:
the map loses its padding, and `image_newline` stands behind each row. `_maxpool2x2`: the largest of 2 x 2 patches of
the map. `_nobase`: without the squeezed whole.
"""
NEWLINE_POSITIONS = ("one_token", "grid", "frame", "no_token")
"""`mm_newline_position`s, of videos: one at the very end (with `unpad` only), behind each row of each frame, behind
each frame, or none."""
POOL_MODES = ("average", "max", "bilinear")
"""`mm_spatial_pool_mode`s, of videos."""
_POOL_STRIDE = 2  # always: the published program does not read mm_spatial_pool_stride here
_LEAST_SHRINKING = 1.1
_MOST_DIGITS = 15  # of a double


def has_newline(merge_type: str) -> bool:
    """Whether a `mm_patch_merge_type` needs `model.image_newline`."""
    return "unpad" in merge_type


def require_merge_type(merge_type: Any) -> str:
    """The name of a way to merge.

    Raises:
        ValueError: if there is no such way.
    """
    if not isinstance(merge_type, str) or merge_type not in MERGE_TYPES:
        raise ValueError(f"mm_patch_merge_type is {shown(merge_type)}; accepted are {', '.join(MERGE_TYPES)}.")
    return merge_type


@dataclass(frozen=True)
class CropMerging:
    """How the crops of an image become one sequence of visual tokens.

    Attributes:
        merge_type: one of `MERGE_TYPES`.
        canvases: that images are fitted to; empty where images are not cut.
        side: pixels on a side of a crop.
        patches: p.
        most: N of `anyres_max_N`; None shrinks no map.
        tokens: features of a crop; p * p, and CLS where the tower gives it too, which only `flat` can do with.
        digits: as in `llava.common.anyres.unpadded`.

    Raises:
        ValueError: if there is no such way to merge, features make no map, or digits are none of a number.
    """

    merge_type: str
    canvases: tuple[Size, ...]
    side: int
    patches: int
    most: int | None = None
    tokens: int | None = None
    digits: int | None = None

    def __post_init__(self) -> None:
        require_merge_type(self.merge_type)
        if self.digits is not None and not 0 <= self.digits <= _MOST_DIGITS:
            raise ValueError(
                f"image_unpad_digits is {shown(self.digits)}; it must be from 0 to {_MOST_DIGITS}, or null."
            )
        if self.merge_type != "flat" and self.of_crop != self.patches**2:
            raise ValueError(
                f"mm_patch_merge_type {self.merge_type!r} makes a map of patches, but the tower gives {self.of_crop} "
                f"features of {self.patches} x {self.patches} patches; set mm_vision_select_feature to 'patch'."
            )

    @classmethod
    def of(
        cls,
        merge_type: str,
        aspect_ratio: str | None,
        pinpoints: Any,
        side: int,
        patches: int,
        tokens: int | None = None,
        digits: int | None = None,
    ) -> CropMerging:
        """From the fields of a configuration.

        Args:
            merge_type: `mm_patch_merge_type`.
            aspect_ratio: `image_aspect_ratio`; images are cut only if it is `anyres` or `anyres_max_N`.
            pinpoints: `image_grid_pinpoints`.
            side: pixels on a side of a crop.
            patches: p.
            tokens: features of a crop, p * p if None.
            digits: `image_unpad_digits`.

        Raises:
            ValueError: if there is no such way to merge, no canvas to choose from, or features make no map.
        """
        canvases = tuple(canvases_of(pinpoints, side)) if is_anyres(aspect_ratio) else ()
        return cls(merge_type, canvases, side, patches, most_crops(aspect_ratio), tokens, digits)

    @property
    def of_crop(self) -> int:
        """Features of a crop."""
        return self.patches**2 if self.tokens is None else self.tokens

    @property
    def without_base(self) -> bool:
        """Whether the squeezed whole is left out where there are other crops."""
        return "nobase" in self.merge_type

    @property
    def newline(self) -> bool:
        """Whether `image_newline` is needed."""
        return has_newline(self.merge_type)

    def grid(self, size: Sequence[Any] | None, crops: int) -> Size:
        """Crops (across, down) of the canvas of an image.

        Args:
            size: (width, height) of the image before it was cut.
            crops: K, as the image came.

        Raises:
            ValueError: if the size was not said, or an image of that size is cut into another number.
        """
        size = _known(size)
        width, height = best_canvas(size, self.canvases) if self.canvases else (0, 0)
        across, down = width // self.side, height // self.side
        if crops != 1 + across * down:
            raise ValueError(
                f"An image came as {crops} crops, but one of {shown(tuple(int(side) for side in size))} (width, "
                f"height) is cut into {1 + across * down}; give image_sizes as the images had them, and the pixels of "
                "llava.mm_utils.process_images."
            )
        return across, down

    def map_shape(self, size: Sequence[Any], grid: Size) -> Size:
        """Rows and columns of the patch map as it is shown, newlines not counted."""
        rows, columns = (max(lines.stop - lines.start, 0) for lines in self.seen(size, grid))
        if "maxpool2x2" in self.merge_type:
            return rows // 2, columns // 2
        return self._shrunk(rows, columns) if self.newline else (rows, columns)

    def count(self, crops: int, size: Sequence[Any] | None = None) -> int:
        """Visual tokens that `merge` gives for an image of `crops` crops; arguments and errors as there."""
        if self.merge_type == "flat":
            return crops * self.of_crop
        if crops == 1:
            return self.of_crop + self.newline
        rows, columns = self.map_shape(_known(size), self.grid(size, crops))
        return rows * (columns + self.newline) + (0 if self.without_base else self.of_crop)

    def merge(self, features: Tensor, size: Sequence[Any] | None = None, newline: Tensor | None = None) -> Tensor:
        """Visual tokens [n, D] of an image.

        Args:
            features: [K, p * p, D] of its crops, the squeezed whole first.
            size: (width, height) of the image before it was cut; not needed for one crop, nor for `flat`.
            newline: `image_newline` [D]; needed by `unpad`.

        Raises:
            ValueError: if the size is needed and missing, or does not fit the number of crops.
        """
        if self.merge_type == "flat":
            return features.flatten(0, 1)
        end = [self.end(newline, features[0])] if self.newline else []
        if len(features) == 1:
            return torch.cat([features[0], *end])
        shown_map = self._mapped(features[1:], _known(size), self.grid(size, len(features)))  # [R, C, D]
        if end:
            rows, _, width = shown_map.shape
            shown_map = torch.cat([shown_map, end[0].expand(rows, 1, width)], dim=1)
        base = [] if self.without_base else [features[0]]
        return torch.cat([*base, shown_map.flatten(0, 1)])

    def _mapped(self, crops: Tensor, size: Sequence[Any], grid: Size) -> Tensor:
        """The patch map [R, C, D] of crops [across * down, p * p, D]."""
        across, down = grid
        whole = crops.unflatten(1, (self.patches, self.patches)).unflatten(0, (down, across))
        whole = whole.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # [down * p, across * p, D]
        if "maxpool2x2" in self.merge_type:
            return F.max_pool2d(whole.permute(2, 0, 1), 2).permute(1, 2, 0)
        if not self.newline:
            return whole
        rows, columns = self.seen(size, grid)
        seen = whole[rows, columns]
        shape = self._shrunk(*seen.shape[:2])
        return seen if shape == tuple(seen.shape[:2]) else _resized(seen[None], shape)[0]

    def seen(self, size: Sequence[Any], grid: Size) -> tuple[slice, slice]:
        """Rows and columns of the patch map of a canvas that become tokens; arguments as of `map_shape`."""
        columns, rows = grid[0] * self.patches, grid[1] * self.patches
        if "maxpool2x2" in self.merge_type:
            return slice(0, rows // 2 * 2), slice(0, columns // 2 * 2)
        if not self.newline:
            return slice(0, rows), slice(0, columns)
        return unpadded(columns, rows, size, self.digits)

    def _shrunk(self, rows: int, columns: int) -> Size:
        """Rows and columns of a map that is shrunk to the patches of `most` crops, if it is clearly larger."""
        if self.most is None:
            return rows, columns
        times = math.sqrt(rows * columns / (self.most * self.patches**2))
        if times <= _LEAST_SHRINKING:
            return rows, columns
        return max(int(rows // times), 1), max(int(columns // times), 1)

    def end(self, newline: Tensor | None, like: Tensor) -> Tensor:
        """The newline [1, D] in the data type of features; ValueError where there is none."""
        if newline is None:
            raise ValueError(f"mm_patch_merge_type {self.merge_type!r} needs image_newline; the model has none.")
        return newline.to(like)[None]


def pooled_frames(features: Tensor, mode: str) -> Tensor:
    """Features [F, p * p, D] of frames with a quarter of the patches: [F, q * q, D].

    Args:
        features: features of square frames.
        mode: one of `POOL_MODES`. `average` and `max` leave out an odd last line, `bilinear` rounds up.

    Raises:
        ValueError: if there is no such mode, or frames are not square.
    """
    patches = math.isqrt(features.shape[1])
    if patches**2 != features.shape[1]:
        raise ValueError(f"A frame has {features.shape[1]} features, which make no square; leave CLS out.")
    maps = features.unflatten(1, (patches, patches))  # [F, p, p, D]
    match mode:
        case "average":
            pooled = F.avg_pool2d(maps.permute(0, 3, 1, 2), _POOL_STRIDE).permute(0, 2, 3, 1)
        case "max":
            pooled = F.max_pool2d(maps.permute(0, 3, 1, 2), _POOL_STRIDE).permute(0, 2, 3, 1)
        case "bilinear":
            half = math.ceil(patches / _POOL_STRIDE)
            pooled = _resized(maps, (half, half))
        case _:
            raise ValueError(f"mm_spatial_pool_mode is {shown(mode)}; accepted are {', '.join(POOL_MODES)}.")
    return pooled.flatten(1, 2)


def merge_frames(frames: Tensor, merge_type: str, position: str, newline: Tensor | None = None) -> Tensor:
    """Visual tokens [n, D] of a video.

    Args:
        frames: [F, q * q, D], see `pooled_frames`.
        merge_type: one of `MERGE_TYPES`; `flat` puts no newline anywhere.
        position: one of `NEWLINE_POSITIONS`.
        newline: `image_newline` [D], where the position asks for it.

    Raises:
        ValueError: if there is no such position or way to merge, or the newline is needed and missing.
    """
    require_merge_type(merge_type)
    if position not in NEWLINE_POSITIONS:
        raise ValueError(f"mm_newline_position is {shown(position)}; accepted are {', '.join(NEWLINE_POSITIONS)}.")
    if merge_type == "flat" or position == "no_token" or (position == "one_token" and not has_newline(merge_type)):
        return frames.flatten(0, 1)
    if newline is None:
        raise ValueError(f"mm_newline_position {position!r} needs image_newline; the model has none.")
    _, patches, width = frames.shape
    if position == "one_token":
        return torch.cat([frames.flatten(0, 1), newline[None]])
    if position == "grid":
        frames = frames.unflatten(1, (math.isqrt(patches), -1)).flatten(0, 1)  # [F * q, q, D]
    return torch.cat([frames, newline.expand(len(frames), 1, width)], dim=1).flatten(0, 1)


def _resized(maps: Tensor, shape: Size) -> Tensor:
    """Maps [M, R, C, D] at another number of rows and columns, bilinear with half-pixel centres, no antialiasing."""
    return F.interpolate(maps.permute(0, 3, 1, 2), size=shape, mode="bilinear").permute(0, 2, 3, 1)


def _known(size: Sequence[Any] | None) -> Sequence[Any]:
    if size is None:
        raise ValueError(
            "The images came without image_sizes, which say how their crops belong together; give (width, height) of "
            "each, before it was cut."
        )
    return size
