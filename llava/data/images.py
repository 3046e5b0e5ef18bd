"""Opening the image files that a data set names."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

# What Pillow's decoders raise on damaged files.
_READ_ERRORS = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)


class BadImageError(ValueError):
    """An image that cannot be used; the message names the file."""


def image_path(image_folder: str | Path, name: str) -> Path:
    """Where an image lies, confined to the image folder.

    Links inside the folder may lead elsewhere: who owns the folder put them there.

    Raises:
        BadImageError: if the name is absolute or climbs out of the folder.
    """
    relative = os.path.normpath(name)
    if not name or os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise BadImageError(f"Image {name!r} does not lie in the image folder {str(image_folder)!r}; name it relative.")
    return Path(image_folder) / relative


def open_rgb(source: str | Path | BinaryIO) -> Image.Image:
    """Read an image as RGB. Like LLaVA, an EXIF rotation is not applied; 16-bit grey is scaled, not clipped.

    Args:
        source: a file's path, or a binary file that is open at its beginning.

    Raises:
        BadImageError: if the file is missing, empty, damaged, cut off, not an image, or unreasonably large.
    """
    what = f"Image file {str(source)!r}" if isinstance(source, str | Path) else "The image"
    try:
        with explained(what), Image.open(source) as image:
            return as_rgb(image)
    except BadImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise BadImageError(f"There is no image file {str(source)!r}; check --image_folder.") from error
        raise


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in words why an image cannot be read.

    Pillow's limit `Image.MAX_IMAGE_PIXELS` is a limit here, not a warning.

    Args:
        what: is read, to begin the sentence with.

    Raises:
        BadImageError: for whatever Pillow raises on damaged, cut off or unreasonably large images.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"{what} is too large: {error}") from error
    except _READ_ERRORS as error:
        raise BadImageError(f"{what} cannot be read: {error}") from error


def as_rgb(image: Image.Image) -> Image.Image:
    """An open image as RGB; of 16-bit grey the upper 8 bits."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
