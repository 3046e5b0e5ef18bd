"""Opening the image files that a data set names."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image


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

    Raises:
        BadImageError: if the file is missing, empty, damaged, not an image, or unreasonably large.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise BadImageError(f"There is no image file {str(path)!r}; check --image_folder.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadImageError(f"Image file {str(path)!r} cannot be read: {error}") from error
