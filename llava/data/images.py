"""Finds and opens the image files that a data set names, within the image folder and the size limits."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from llava.common.image_headers import UnfitFileError
from llava.common.image_limits import ImageLimitError, is_lack_of_memory, open_image_file
from llava.common.image_opening import DEFAULT_OPENING, as_rgb
from llava.common.outside_files import why_unreadable
from llava.common.shown import printable, shown

LONGEST_NAME = 300
"""Characters of a file's name that a message shows."""
_LONGEST_SAYING = 500

Picture = Path | bytes | Image.Image
"""An image: a file, the content of one, or as Pillow opened it, in any mode."""


class BadImageError(UnfitFileError):
    """An image or a video that cannot be used; the message names the file."""


class MissingImageError(BadImageError):
    """An image or a video that is not there."""


def image_path(image_folder: str | Path, name: str, kind: str = "image") -> Path:
    """Where an image or a video lies, confined to its folder.

    Links inside the folder may lead elsewhere: who owns the folder put them there.

    Args:
        image_folder: where relative names start.
        name: relative, or absolute if it leads into the folder.
        kind: `image` or `video`.

    Raises:
        BadImageError: if the name is empty or leads out of the folder.
    """
    relative = _inside(image_folder, name) if os.path.isabs(name) else os.path.normpath(name)
    if not name.strip() or relative is None or relative.split(os.sep)[0] == os.pardir:
        raise BadImageError(
            f"{kind.capitalize()} {shown_name(name)} does not lie in the {kind} folder {str(image_folder)!r}; name it "
            "relative."
        )
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
    """Read an image as RGB, by the rules of `common.image_opening` and within the limits of `common.image_limits`.

    Args:
        source: a file's path, or a binary file that is open at its beginning.
        opening: `upright` or `llava`.

    Raises:
        BadImageError: if the file is missing, empty, damaged, cut off, not an image, or unreasonably large.
    """
    what = f"Image file {shown_name(source)}" if isinstance(source, str | Path) else "The image"
    try:
        with explained(what), open_image_file(source) as image:
            return as_rgb(image, opening)
    except BadImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise MissingImageError(f"There is no image file {shown_name(source)}; check --image_folder.") from error
        raise


def open_picture(picture: Picture, opening: str = DEFAULT_OPENING) -> Image.Image:
    """An image as RGB, from a file, from the content of one, or as Pillow opened it; errors as in `open_rgb`."""
    if isinstance(picture, Image.Image):
        with explained(name_of(picture)):
            return as_rgb(picture, opening)
    if isinstance(picture, bytes):
        return open_rgb(io.BytesIO(picture), opening)
    try:
        return open_rgb(picture, opening)
    except MissingImageError as error:
        raise MissingImageError(f"There is no image file {shown_name(picture)}; check its name and folder.") from error


def name_of(picture: Picture) -> str:
    """What an image is called, to begin the sentence of an error with."""
    return f"Image {shown_name(picture)}" if isinstance(picture, Path) else "An image of a question"


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say in words why an image cannot be read.

    Pillow's limit `Image.MAX_IMAGE_PIXELS` is a limit here, not a warning, and its other warnings are not shown: what
    they are about either keeps the image from being read or does not.

    Args:
        what: is read, to begin the sentence with.

    Raises:
        BadImageError: for whatever Pillow raises on damaged, cut off or unreasonably large images, which are errors of
            nearly any kind, and where memory does not suffice.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (ImageLimitError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImageError(f"{what} is too large: {why_unusable(error)}.") from error
    except Exception as error:
        if is_lack_of_memory(error):
            raise BadImageError(f"{what} is too large: it takes more memory than there is.") from error
        raise BadImageError(f"{what} cannot be read: {why_unusable(error)}.") from error


@contextmanager
def within_limits(what: str) -> Iterator[None]:
    """Name the image whose preparation goes beyond the limits of `llava.common.image_limits`.

    Args:
        what: is prepared, to begin the sentence with.

    Raises:
        BadImageError: for an ImageLimitError.
    """
    try:
        yield
    except ImageLimitError as error:
        raise BadImageError(f"{what} is too large: {error}.") from error


def why_unusable(error: Exception) -> str:
    """What is wrong with an image file or the disk it lies on, and what to do, in a clause on one line.

    Args:
        error: error of the system, of Pillow or another decoder, or of this package.
    """
    if isinstance(error, OSError) and error.errno:
        return why_unreadable(error)
    said = printable(next(iter(str(error).splitlines()), ""), _LONGEST_SAYING).rstrip(".")
    if isinstance(error, UnfitFileError):
        return said
    kind = "" if said and isinstance(error, OSError | ValueError) else type(error).__name__
    return f"{f'{kind} {said}'.strip()}; it is damaged or cut off, copy it anew"


def shown_name(name: object) -> str:
    """A file's name as a message shows it."""
    return shown(str(name), LONGEST_NAME)
