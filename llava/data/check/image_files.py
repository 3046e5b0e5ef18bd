"""Checks image files: existence, readability, format and size."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from llava.common.image_headers import check_header, header_is_whole
from llava.common.image_limits import (
    MOST_FILE_BYTES,
    ImageLimitError,
    UnknownFormatError,
    check_pixels,
    most_pixels,
    most_prepared_pixels,
    open_by_header,
    open_image_file,
    prepared_pixels,
)
from llava.common.image_opening import orientation
from llava.common.outside_files import kind_of_file, why_unreadable
from llava.data.check.check_settings import CheckSettings
from llava.data.check.findings import Finding
from llava.data.check.preparing import own_inputs
from llava.data.images import BadImageError, image_path, open_rgb, why_unusable

THIN = 10  # longer side over shorter side
LARGE = 25_000_000  # pixels
TINY = 14  # pixels of a side: one patch of CLIP ViT-L/14
_BEGINNING = 2**16  # bytes that hold the header of nearly all files
_OTHER_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp")
_UPRIGHT = (None, 1)
_SAME_FORMAT = {"MPO": "JPEG"}  # several JPEG images in one file, as some cameras write them


def check_images(chunk: Iterable[tuple[str, str]], settings: CheckSettings) -> list[tuple[Finding, ...]]:
    """Check (image folder, name) pairs; nothing that a file holds makes this raise."""
    return [tuple(_check(folder, name, settings)) for folder, name in chunk]


def _check(folder: str, name: str, settings: CheckSettings) -> list[Finding]:
    try:
        path = image_path(folder, name)
    except BadImageError:
        return [Finding("image_outside_folder", name)]
    try:
        fault = _file_fault(path, name)
        if fault:
            return [fault]
        findings = _read_header(path, name, settings)
        if settings.images == "full" and not any(finding.is_error for finding in findings):
            findings += _decode(path, name, settings)
        return findings
    except Exception as error:  # Pillow's readers raise many kinds on damaged files, as they would in training
        return [_broken(name, error)]


def _broken(name: str, error: Exception) -> Finding:
    of_the_system = isinstance(error, OSError) and error.errno
    return Finding("image_unreadable" if of_the_system else "image_broken", f"{name}: {why_unusable(error)}")


def _file_fault(path: Path, name: str) -> Finding | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Finding("image_missing", name + _beside(path))
    except OSError as error:
        return _broken(name, error)
    except ValueError as error:  # a zero byte or half of a surrogate pair in the name
        return Finding("image_broken", f"{name}: {why_unreadable(error)}")
    if not stat.S_ISREG(status.st_mode):
        return Finding("not_an_image", f"{name}: {kind_of_file(status.st_mode)}, not a file")
    if status.st_size > MOST_FILE_BYTES:
        return Finding("image_bomb", f"{name}: {status.st_size:,} bytes, more than {MOST_FILE_BYTES:,}")
    return None if status.st_size else Finding("image_empty", name)


def _beside(path: Path) -> str:
    """OCR-VQA's images are downloaded under other endings than its records name; say so where that is it."""
    others = [suffix for suffix in _OTHER_SUFFIXES if suffix != path.suffix and path.with_suffix(suffix).exists()]
    return f" (there is {path.with_suffix(others[0]).name})" if others else ""


def _read_header(path: Path, name: str, settings: CheckSettings) -> list[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _opened(path) as image:
                check_pixels(image.size)
                findings = _look_at_size(image, name, settings.aspect_ratio)
                with suppress(Exception):  # damaged metadata does not keep training from decoding the pixels
                    findings += _look_at_format(image, path, name)
                return findings
        except ImageLimitError as error:
            return [Finding("image_bomb", f"{name}: {str(error).split(',')[0]}")]
        except UnknownFormatError:
            return [Finding("not_an_image", f"{name}{_beginning(path)}")]


def _opened(path: Path) -> Image.Image:
    """Opens an image as training does, but reads only the beginning of the file where that is enough."""
    with path.open("rb") as file:
        beginning = file.read(_BEGINNING)
    if not header_is_whole(beginning):
        return open_image_file(path)
    check_header(beginning, most_pixels())
    return open_by_header(path, beginning)


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return f": begins with {file.read(16)!r}"


def _look_at_size(image: Image.Image, name: str, aspect_ratio: str | None) -> list[Finding]:
    width, height = image.size
    short, long = sorted(image.size)
    findings, size = [], f"{name}: {width} x {height}"
    prepared = 0 if aspect_ratio is None else prepared_pixels(image.size, aspect_ratio)
    if prepared > most_prepared_pixels(aspect_ratio):
        return [Finding("image_bomb", f"{size}, {prepared:.2g} pixels after --image-aspect-ratio {aspect_ratio}")]
    if long > THIN * short:
        findings.append(Finding("image_thin", size))
    if width * height > LARGE:
        findings.append(Finding("image_large", size))
    if short < TINY:
        findings.append(Finding("image_tiny", size))
    return findings


def _look_at_format(image: Any, path: Path, name: str) -> list[Finding]:
    findings = []
    actual = _SAME_FORMAT.get(image.format, image.format)
    expected = Image.registered_extensions().get(path.suffix.lower())
    if expected is not None and actual != expected:
        findings.append(Finding("image_mislabelled", f"{name}: a {actual} file"))
    if image.mode == "CMYK":
        findings.append(Finding("image_cmyk", name))
    if image.mode[0] in "IF" or any(";16" in str(tile.args) for tile in image.tile):
        findings.append(Finding("image_deep", f"{name}: mode {image.mode}"))
    if actual != "JPEG" and getattr(image, "is_animated", False):
        findings.append(Finding("image_animated", f"{name}: {image.n_frames} frames"))
    if image.has_transparency_data:
        findings.append(Finding("image_transparent", f"{name}: mode {image.mode}"))
    mark = orientation(image)
    if mark not in _UPRIGHT:
        findings.append(Finding("image_rotated", f"{name}: orientation {mark}"))
    return findings


def _decode(path: Path, name: str, settings: CheckSettings) -> list[Finding]:
    """Open as training does, and have a processor of the model's own prepare it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = open_rgb(path, settings.image_opening)
        except BadImageError as error:
            return [_broken(name, error.__cause__ if isinstance(error.__cause__, Exception) else error)]
        inputs = own_inputs(settings, "image_processor")
        try:
            if inputs is not None:
                inputs.image(picture, name)
        except BadImageError as error:
            return [Finding("image_refused", str(error))]
    return []
