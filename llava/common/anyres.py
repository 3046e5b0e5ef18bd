"""Cutting an image of any size into crops of the vision tower's size, as LLaVA-NeXT does ("anyres").

The image is scaled to fit one of several canvases, centred there on black, and the canvas is cut into a grid of crops.
In front of them stands the whole image, squeezed to one crop without keeping its ratio. All sizes are (width, height)
in pixels, as in LLaVA; transformers writes them the other way round. S is the side of a crop.

Sources: haotian-liu/LLaVA, llava/mm_utils.py; LLaVA-VL/LLaVA-NeXT, the same file, for `anyres_max_N` and for grids in
words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.common.image_limits import USUAL_MOST_PIXELS
from llava.common.shown import shown

Size = tuple[int, int]
"""Width and height in pixels, or columns and rows of crops."""

DEFAULT_GRIDS: tuple[Size, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Crops across and down that LLaVA-1.6 chooses from, in its order."""
MOST_CANVASES = 1024
_LONGEST_TEXT = 65536
_PAIR = re.compile(r"[\[(]\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,?\s*[\])]")
_LIST = re.compile(r"\s*[\[(](?:\s*[\[(]\s*\d{1,9}\s*,\s*\d{1,9}\s*,?\s*[\])]\s*,?)*+\s*[\])]\s*")
_RANGE = re.compile(r"\s*\((\d{1,9})x(\d{1,9})\)\s*,\s*\.\.\.\s*,\s*\((\d{1,9})x(\d{1,9})\)\s*")
_MOST_CROPS = re.compile(r"anyres_max_([1-9]\d{0,8})")


def is_anyres(aspect_ratio: str | None) -> bool:
    """Whether an `image_aspect_ratio` asks for crops: `anyres`, or `anyres_max_N` with a number N."""
    return aspect_ratio == "anyres" or most_crops(aspect_ratio) is not None


def most_crops(aspect_ratio: str | None) -> int | None:
    """N of `anyres_max_N`: of how many crops the patches are kept; a larger map is shrunk. None of others."""
    found = _MOST_CROPS.fullmatch(aspect_ratio or "")
    return int(found[1]) if found else None


def default_pinpoints(side: int) -> list[list[int]]:
    """The canvases of LLaVA-1.6 for crops of `side` pixels; for 336 those of its `config.json`."""
    return [[across * side, down * side] for across, down in DEFAULT_GRIDS]


def canvases_of(pinpoints: Any, side: int) -> list[Size]:
    """The canvases to choose from.

    Args:
        pinpoints: `image_grid_pinpoints`: a list of [width, height], the same as text, or a range of grids in words,
            `(1x1),...,(6x6)`: all of 1 to 6 crops across and 1 to 6 down, down counting faster.
        side: S.

    Raises:
        ValueError: if it is none of these, empty, holds a canvas that crops do not fill, or one of more than 89 million
            pixels; says what is accepted.
    """
    found = _of_text(pinpoints, side) if isinstance(pinpoints, str) else _of_list(pinpoints)
    if not found:
        raise _unreadable(pinpoints)
    for width, height in found:
        if width < side or height < side or width % side or height % side:
            raise ValueError(
                f"image_grid_pinpoints holds {width} x {height}, which crops of {side} x {side} pixels do not fill; "
                f"give multiples of {side}, or the vision tower that the canvases were made for."
            )
        if width * height > USUAL_MOST_PIXELS:
            raise ValueError(
                f"image_grid_pinpoints holds {width} x {height}, more than the {USUAL_MOST_PIXELS} pixels that are "
                "accepted; take it out."
            )
    return found


def _of_list(pinpoints: Any) -> list[Size]:
    if not isinstance(pinpoints, Sequence) or len(pinpoints) > MOST_CANVASES:
        raise _unreadable(pinpoints)
    for pair in pinpoints:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise _unreadable(pinpoints)
        if any(isinstance(number, bool) or not isinstance(number, int) for number in pair):
            raise _unreadable(pinpoints)
    return [(width, height) for width, height in pinpoints]


def _of_text(text: str, side: int) -> list[Size]:
    if len(text) > _LONGEST_TEXT:
        raise _unreadable(text)
    grids = _RANGE.fullmatch(text)
    if grids is not None:
        first_across, first_down, last_across, last_down = map(int, grids.groups())
        count = max(last_across - first_across + 1, 0) * max(last_down - first_down + 1, 0)
        if not 0 < count <= MOST_CANVASES:
            raise _unreadable(text)
        ranges = range(first_across, last_across + 1), range(first_down, last_down + 1)
        return [(across * side, down * side) for across in ranges[0] for down in ranges[1]]
    if _LIST.fullmatch(text) is None:
        raise _unreadable(text)
    return _of_list([(int(width), int(height)) for width, height in _PAIR.findall(text)])


def _unreadable(pinpoints: Any) -> ValueError:
    return ValueError(
        f"image_grid_pinpoints is {shown(pinpoints)}; it must be a list of [width, height] in pixels, such as "
        f"[[336, 672], [672, 336]], or a range of grids such as (1x1),...,(6x6), with at most {MOST_CANVASES} of them."
    )


def best_canvas(size: Sequence[Any], canvases: Sequence[Size]) -> Size:
    """The canvas for an image: where it fits with the most of its own pixels, then with the least waste.

    Of canvases that are alike the first is taken.

    Args:
        size: size of the image; numbers or one-element tensors.
        canvases: canvases to choose from.

    Raises:
        ValueError: if the image has no pixels, or there is no canvas.
    """
    width, height = checked_size(size)
    if not canvases:
        raise ValueError("There is no canvas to choose from; give image_grid_pinpoints.")

    def worth(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - canvas[0] * canvas[1]

    return max(canvases, key=worth)  # of equals the first


def checked_size(size: Sequence[Any]) -> Size:
    """Width and height as whole numbers.

    Raises:
        ValueError: if they are not two positive whole numbers.
    """
    try:
        width, height = size
        numbers = int(width), int(height)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The size of an image is {shown(size)}; it must be (width, height) in pixels.") from error
    if min(numbers) < 1 or numbers != (width, height):
        raise ValueError(f"The size of an image is {shown(size)}; it must be (width, height) in pixels.")
    return numbers


def grid_of(size: Sequence[Any], pinpoints: Any, side: int) -> Size:
    """Crops (across, down) that an image is cut into, the squeezed whole in front of them not counted.

    Args:
        size: size of the image.
        pinpoints: as in `canvases_of`.
        side: S.

    Raises:
        ValueError: as `canvases_of` and `best_canvas`.
    """
    width, height = best_canvas(size, canvases_of(pinpoints, side))
    return width // side, height // side


def on_canvas(image: Image.Image, canvas: Size) -> Image.Image:
    """The image scaled to touch the canvas, with Pillow's bicubic filter, and centred there on black."""
    (width, height), (wide, high) = image.size, canvas
    across, down = wide / width, high / height
    if across < down:
        fitted = wide, min(math.ceil(height * across), high)
    else:
        fitted = min(math.ceil(width * down), wide), high
    whole = Image.new("RGB", canvas, (0, 0, 0))
    corner = (wide - fitted[0]) // 2, (high - fitted[1]) // 2
    whole.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
    return whole


def cut(image: Image.Image, side: int) -> list[Image.Image]:
    """Squares of `side` pixels, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + side, top + side))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def crops_of(image: Image.Image, pinpoints: Any, side: int) -> list[Image.Image]:
    """The whole image squeezed to S x S, and behind it the crops of its canvas, row by row.

    Args:
        image: image in RGB.
        pinpoints: as in `canvases_of`.
        side: S.

    Raises:
        ValueError: as `canvases_of`.
    """
    canvas = best_canvas(image.size, canvases_of(pinpoints, side))
    return [image.resize((side, side), Image.Resampling.BICUBIC), *cut(on_canvas(image, canvas), side)]


def unpadded(columns: int, rows: int, size: Sequence[Any], digits: int | None = None) -> tuple[slice, slice]:
    """Which rows and columns of the patch map of a canvas show the image rather than black.

    Of an odd number of lines around it one is left in. Of a very thin image none may be left.

    Args:
        columns, rows: size of the map.
        size: size of the image.
        digits: decimals that the length of the image on the map is rounded to before it is cut to whole lines, as
            transformers does with 7; None cuts it as it is, as LLaVA does.
    """
    width, height = checked_size(size)
    wide = width / height > columns / rows
    length = height * (columns / width) if wide else width * (rows / height)
    kept = int(length if digits is None else round(length, digits))
    line = ((rows if wide else columns) - kept) // 2
    if wide:
        return slice(line, rows - line), slice(0, columns)
    return slice(0, rows), slice(line, columns - line)
