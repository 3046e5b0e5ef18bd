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

from PIL import Image

from llava.image_opening import DEFAULT_OPENING, as_rgb

# What Pillow's decoders raise on damaged files.
_READ_ERRORS = (OSError, EOFError, SyntaxError, ValueError, IndexError, struct.error, zlib.error)


class BadImageError(ValueError):
    """An image that cannot be used; the message names the file."""


def image_path(image_folder: str | Path, name: str) -> Path:
    """Where an image lies, confined to the image folder.

    Links inside the folder may lead elsewhere: who owns the folder put them there.

    Args:
        image_folder: where relative names start.
        name: relative, or absolute if it leads into the folder.

    Raises:
        BadImageError: if the name is empty or leads out of the folder.
    """
    relative = _inside(image_folder, name) if os.path.isabs(name) else os.path.normpath(name)
    if not name.strip() or relative is None or relative.split(os.sep)[0] == os.pardir:
        raise BadImageError(f"Image {name!r} does not lie in the image folder {str(image_folder)!r}; name it relative.")
    return Path(image_folder) / relative


def _inside(image_folder: str | Path, name: str) -> str | None:
    """An absolute name as one relative to the folder, by the letter or through links; None if it leads elsewhere."""
    folder, written = os.path.abspath(image_folder), os.path.normpath(name)
    for start, place in ((folder, written), (os.path.realpath(folder), written)):
        if place.startswith(os.path.join(start, "")):
            return os.path.relpath(place, start)
    try:
        real, place = os.path.realpath(folder), os.path.realpath(name)
    except ValueError:  # a zero byte is no part of any path
        return None
    return os.path.relpath(place, real) if place.startswith(os.path.join(real, "")) else None


def open_rgb(source: str | Path | BinaryIO, opening: str = DEFAULT_OPENING) -> Image.Image:
    """Read an image as RGB, by the rules of `llava.image_opening`.

    Args:
        source: a file's path, or a binary file that is open at its beginning.
        opening: `upright` or `llava`.

    Raises:
        BadImageError: if the file is missing, empty, damaged, cut off, not an image, or unreasonably large.
    """
    what = f"Image file {str(source)!r}" if isinstance(source, str | Path) else "The image"
    try:
        with explained(what), Image.open(source) as image:
            return as_rgb(image, opening)
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
