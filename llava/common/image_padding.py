"""Padding a large image to a square and scaling it down without ever making the square.

The square of a picture 1000 pixels wide and 18,900 high has 357 million pixels, which is 1.4 GB in Pillow, and 4.8 GB
with the copies that an image processor makes of it.
"""

from __future__ import annotations

from PIL import Image

_BAND = 4_000_000
"""Pixels of the square that are made at a time."""


def scaled_square(image: Image.Image, color: tuple[int, ...], side: int, resample: int) -> Image.Image:
    """What `expand2square(image, color).resize((side, side), resample)` is, to the last bit.

    Pillow scales rows first, each for itself, and then columns. So the rows of the square are made, scaled and laid
    down band by band; rows that are all padding stay what they are.

    Args:
        image: image in a mode of 8 bits, such as RGB.
        color: colour of the padding.
        side: side of the result, in pixels.
        resample: filter, of Pillow's.
    """
    width, height = image.size
    long = max(width, height)
    left, top = (long - width) // 2, (long - height) // 2
    narrow = Image.new(image.mode, (side, long), color)
    rows = max(1, _BAND // long)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        band = Image.new(image.mode, (long, end - start), color)
        band.paste(image.crop((0, start, width, end)), (left, 0))
        narrow.paste(band.resize((side, end - start), resample), (0, top + start))
    return narrow.resize((side, side), resample)
