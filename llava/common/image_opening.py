"""What an image file's pixels become before a model sees them: one rule for training, evaluation, chat and harnesses.

`upright`, the default:

- The camera's rotation mark (EXIF or XMP orientation; in video files the display matrix) is applied.
- Transparent parts are white: whatever has an alpha channel or a transparent colour lies on a white sheet.
- 16-bit grey keeps its upper 8 bits, as Pillow does with 16-bit colour files. 32-bit grey files (modes `I` and `F`) do
  not say what white is; it is the end of the smallest usual range that holds all their values: 1 (`F` only), 255,
  65535, and for integers 2^31 - 1. Values outside all of these, negative ones for instance, are stretched from their
  smallest (black) to their largest (white). NaN is black.
- Of several frames the first is taken. CMYK and other colour spaces are converted as Pillow does, colour profiles are
  left aside.

`llava` is what LLaVA's code does: `Image.open(path).convert("RGB")`, nothing else. Photos with a rotation mark are seen
lying, transparency is dropped, and grey of more than 8 bits is clipped at 255. Numbers published for LLaVA's
checkpoints were measured so.

A model is trained under one of the two, and `config.json` says which under the key `image_opening`; every program asks
that model with images that were opened the same way, unless it is told otherwise.
"""

from __future__ import annotations

import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from llava.common.image_headers import check_directory
from llava.common.image_limits import check_pixels
from llava.common.outside_files import DAMAGED

OPENINGS = ("upright", "llava")
DEFAULT_OPENING = "upright"

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DAMAGED = (*DAMAGED, MemoryError, SyntaxError, struct.error)
_BAND = 2**20  # pixels
_RANGES = {"I": (2**8 - 1, 2**16 - 1, 2**31 - 1), "F": (1, 2**8 - 1, 2**16 - 1)}


def check_opening(opening: str) -> str:
    """The name of an opening.

    Raises:
        ValueError: if there is no such opening.
    """
    if opening not in OPENINGS:
        raise ValueError(f"image_opening is {opening!r}; accepted are {', '.join(OPENINGS)}.")
    return opening


def opening_of(config: Any, asked: str | None = None) -> str:
    """How the images of a model are opened.

    Args:
        config: configuration of the model; one that does not say has the default.
        asked: overrides it.

    Raises:
        ValueError: if there is no such opening.
    """
    return check_opening(asked or getattr(config, "image_opening", None) or DEFAULT_OPENING)


def as_rgb(image: Image.Image, opening: str = DEFAULT_OPENING) -> Image.Image:
    """An image as RGB, by the rules of this module. What it returns comes back unchanged when given again.

    Args:
        image: image as Pillow opened it, in any mode; of several frames the one it stands at.
        opening: `upright` or `llava`.

    Raises:
        ValueError: if there is no such opening, or Pillow cannot convert the mode.
        ImageLimitError: if it has more pixels than are accepted, see `llava.common.image_limits`.
        OSError: and others of Pillow's, if the pixels cannot be decoded.
    """
    check_opening(opening)
    check_pixels(image.size)
    if opening == "llava":
        rgb = image.convert("RGB")
    else:
        image.load()  # marks may stand behind the pixels
        turn = _TURNS.get(orientation(image))
        rgb = _flat(image)
        rgb = rgb if turn is None else rgb.transpose(turn)
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {}  # or the rotation mark would be applied again
    return rgb


def orientation(image: Image.Image) -> Any:
    """The rotation mark, if it can be read: damaged metadata does not keep anyone from seeing the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check_directory(_exif(image))
            mark = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED:
        return None
    return mark if isinstance(mark, int) else None


def _exif(image: Image.Image) -> bytes:
    """EXIF as Pillow takes it: bytes, or in PNG text chunks three lines and hexadecimal digits."""
    if image.info.get("exif"):
        return bytes(image.info["exif"])
    return bytes.fromhex("".join(str(image.info.get("Raw profile type exif", "")).split("\n")[3:]))


def _flat(image: Image.Image) -> Image.Image:
    """RGB of an image of any mode, transparent parts white."""
    if image.mode.startswith("I;16"):
        deep = np.asarray(image)
        grey = Image.fromarray((deep >> 8).astype(np.uint8))
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey.paste(255, mask=Image.fromarray(deep == transparent))
        return grey.convert("RGB")
    if image.mode in _RANGES:
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode, image.format)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of a 16-bit colour file, whose pixels Pillow reads as 8 bits
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")


def _eight_bits(values: NDArray[Any], mode: str, file_format: str | None) -> NDArray[np.uint8]:
    """32-bit grey [H, W] as 8 bits, by the smallest usual range that holds it; the end of the range is white."""
    finite = (band[np.isfinite(band)] for band in _bands(values))
    ends = [(float(numbers.min()), float(numbers.max())) for numbers in finite if numbers.size]
    low, high = min((low for low, _ in ends), default=0.0), max((high for _, high in ends), default=0.0)
    ranges = (2**16 - 1,) if file_format == "PPM" and mode == "I" else _RANGES[mode]  # Pillow scales PGM to 16 bits
    end = next((end for end in ranges if low >= 0 and high <= end), None)
    black, white = (low, high) if end is None else (0.0, float(end))
    eight: NDArray[np.uint8] = np.empty(values.shape, np.uint8)
    for band, made in zip(_bands(values), _bands(eight), strict=True):
        if mode == "I" and end is not None:
            made[...] = (band >> (end.bit_length() - 8)).astype(np.uint8)
        else:
            shares = np.clip((band.astype(np.float64) - black) / max(white - black, np.finfo(np.float64).tiny), 0, 1)
            made[...] = np.nan_to_num(np.rint(shares * 255)).astype(np.uint8)
    return eight


def _bands(values: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of an image [H, W], some at a time: as 64-bit numbers all of them would take gigabytes."""
    rows = max(1, _BAND // max(1, values.shape[1]))
    return [values[start : start + rows] for start in range(0, values.shape[0], rows)]
