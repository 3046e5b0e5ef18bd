"""Opening the image files that a data set names."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

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


def open_rgb(path: str | Path) -> Image.Image:
    """Read a file as RGB. Like LLaVA, an EXIF rotation is not applied; 16-bit grey is scaled, not clipped.

    Pillow's limit `Image.MAX_IMAGE_PIXELS` is a limit here, not a warning.

    Raises:
        BadImageError: if the file is missing, empty, damaged, cut off, not an image, or unreasonably large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _read_rgb(path)
    except FileNotFoundError as error:
        raise BadImageError(f"There is no image file {str(path)!r}; check --image_folder.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"Image file {str(path)!r} is too large: {error}") from error
    except _READ_ERRORS as error:
        raise BadImageError(f"Image file {str(path)!r} cannot be read: {error}") from error


def _read_rgb(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        return image.convert("RGB")
