"""How large an image may be, in which formats it may come, and opening one within these limits.

An image of 99 bytes may have a billion pixels, and a thin one becomes a huge square when it is padded. Three numbers
bound what an image costs, in training, evaluation, chat, harnesses and the data check alike:

- the bytes of its file: `MOST_FILE_BYTES`;
- its pixels: `most_pixels()`, Pillow's own limit of 89 million, which a photo of 8 x 11 megapixels reaches;
- the pixels of what the preparation makes of it: with `pad` a square of at most four times as many, so that a picture
  1000 pixels wide may be 18,900 high; with `square` as many, so that one side may be 790 times the other; with `anyres`
  the canvases are bounded themselves, and Pillow squeezes a picture to the tower's width before it does so to its
  height, so that one may be 266,000 pixels high.

Only the formats in `FORMATS` are decoded. Pillow knows some forty more, several of which start other programs or decode
bodies that their headers say nothing about.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from llava.common.image_headers import UnfitFileError, check_header
from llava.common.outside_files import kind_of_file, why_unreadable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats as Pillow names them: APNG is among PNG, PBM and PGM among PPM, MPO of some cameras among JPEG."""
MOST_FILE_BYTES = 256 * 2**20
USUAL_MOST_PIXELS = 89_478_485
MOST_PADDED_PIXELS = 4 * USUAL_MOST_PIXELS
TOWER_SIDE = 336  # pixels of CLIP's input

# Words of torch's own errors, which have no class of their own on CPUs.
_TOO_LITTLE_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class ImageLimitError(UnfitFileError):
    """An image, or what would be made of it, is too large; the message says how large and what is accepted."""


class UnknownFormatError(UnfitFileError):
    """A file that is no image of an accepted format."""


def most_pixels() -> int:
    """Pixels that a decoded image may have: Pillow's `MAX_IMAGE_PIXELS`, also where that was switched off."""
    return Image.MAX_IMAGE_PIXELS or USUAL_MOST_PIXELS


def read_file(path: str | Path) -> bytes:
    """The content of a regular file; never waits for a pipe, a socket or a device.

    Args:
        path: path of the file, links are followed.

    Raises:
        OSError: if there is none or it cannot be read.
        UnfitFileError: if it is something else than a file, or empty.
        ImageLimitError: if it is larger than `MOST_FILE_BYTES`.
    """
    try:
        status = os.stat(path)
    except ValueError as error:
        raise UnfitFileError(why_unreadable(error)) from error
    _check_status(status)  # before it is opened, which devices may take for a command
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_status(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        return file.read(MOST_FILE_BYTES)


def _check_status(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = kind_of_file(status.st_mode)
        raise UnfitFileError(f"it is {kind}, not a file; name an image file ({', '.join(FORMATS)})")
    if status.st_size == 0:
        raise UnfitFileError("the file is empty; copy it anew")
    if status.st_size > MOST_FILE_BYTES:
        raise ImageLimitError(
            f"the file has {status.st_size:,} bytes, more than the {MOST_FILE_BYTES:,} that are accepted"
        )


def open_image_file(source: str | Path | bytes | BinaryIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image as Pillow opens it, not decoded yet; its file is closed.

    Args:
        source: path, content, or a binary file that is open at its beginning.
        formats: that are accepted.

    Raises:
        UnknownFormatError: if it is of no accepted format.
        UnfitFileError: if it is no file or empty, or its header costs more than its file.
        ImageLimitError: if it is too large.
        Exception: of nearly any kind on damaged files, as Pillow raises them; `llava.data.images.explained` says so.
    """
    if isinstance(source, str | Path):
        content = read_file(source)
    else:
        content = source if isinstance(source, bytes) else source.read(MOST_FILE_BYTES + 1)
    if len(content) > MOST_FILE_BYTES:
        raise ImageLimitError(f"the file has more than the {MOST_FILE_BYTES:,} bytes that are accepted")
    check_header(content, most_pixels())
    image = open_by_header(BytesIO(content), content, formats)
    check_pixels(image.size)
    return image


def open_by_header(source: Path | BinaryIO, beginning: bytes, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """An image as Pillow opens it, without looking at its content by ourselves; see `open_image_file`.

    Args:
        source: path or file.
        beginning: beginning of its content, for the message.
        formats: that are accepted.

    Raises:
        UnknownFormatError: if it is of no accepted format.
        ImageLimitError: if Pillow finds it too large.
        Exception: as `open_image_file`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(source, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        said = re.sub(r"limit of \d+", f"limit of {most_pixels()}", str(error).split(",")[0])  # Pillow names its double
        raise ImageLimitError(f"{said}; scale it down") from error
    except Image.UnidentifiedImageError as error:
        raise UnknownFormatError(
            f"it is not in one of the accepted formats {', '.join(formats)}, or it is damaged or cut off "
            f"(it begins with {beginning[:8]!r})"
        ) from error


def check_pixels(size: tuple[int, int]) -> None:
    """See that an image may be decoded.

    Raises:
        ImageLimitError: if it is larger than `most_pixels()`.
    """
    pixels = size[0] * size[1]
    if pixels > most_pixels():
        raise ImageLimitError(
            f"{size[0]} x {size[1]} are {pixels} pixels, more than the {most_pixels()} that are accepted; scale it down"
        )


def prepared_pixels(size: tuple[int, int], aspect_ratio: str | None, side: int = TOWER_SIDE) -> int:
    """Pixels that the preparation makes of an image, before the tower's square is cut out.

    Args:
        size: width and height.
        aspect_ratio: `pad` fills up to a square; `anyres` and `anyres_max_N` squeeze the whole image, beside its crops;
            `square` and None scale the shorter side to the tower's.
        side: side of the tower's input.
    """
    short, long = sorted(size)
    if aspect_ratio == "pad":
        return long * long
    if (aspect_ratio or "").startswith("anyres"):
        return side * size[1]
    return side * ceil(side * long / max(short, 1))


def most_prepared_pixels(aspect_ratio: str | None) -> int:
    """Pixels that the preparation may make of an image; arguments as in `prepared_pixels`."""
    return MOST_PADDED_PIXELS if aspect_ratio == "pad" else USUAL_MOST_PIXELS


def check_prepared(size: tuple[int, int], aspect_ratio: str | None, side: int = TOWER_SIDE) -> None:
    """See that an image may be prepared; arguments as in `prepared_pixels`.

    Raises:
        ImageLimitError: if that makes more than `most_prepared_pixels`.
    """
    pixels, most = prepared_pixels(size, aspect_ratio, side), most_prepared_pixels(aspect_ratio)
    if pixels > most:
        raise ImageLimitError(
            f"{size[0]} x {size[1]} become {pixels} pixels with image_aspect_ratio {aspect_ratio or 'square'}, more "
            f"than the {most} that are accepted; crop it, or scale it down"
        )


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that the machine's memory does not suffice, Python's way or torch's."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TOO_LITTLE_MEMORY)
