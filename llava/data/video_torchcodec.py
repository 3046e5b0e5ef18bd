"""Decodes chosen frames of a video file with torchcodec, where it gives exactly what PyAV gives.

PyAV says what a file holds and which frame is which in any case; so what is refused, and in which words, does not
depend on the decoder. torchcodec decodes the chosen frames of files whose index is exact and whose pixels are such that
both come to the same colours. The first of them is decoded by both; where they differ in one pixel, or torchcodec fails
in any way, PyAV decodes them all.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llava.common.image_headers import UnfitFileError
from llava.common.shown import shown

logger = logging.getLogger(__name__)

Kept = TypeVar("Kept")
VARIABLE = "LLAVA_VIDEO_DECODER"
"""Variable of the environment that chooses: `auto` (torchcodec where it works), `pyav` or `torchcodec`."""
CHOICES = ("auto", "pyav", "torchcodec")
SAME_COLOURS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
"""Formats of pixels, of 8 bits, that both were found to turn into the same RGB; of 10 bits they differ."""
_SAME_TIME = 1e-4  # seconds


def torchcodec_decoder(environment: Mapping[str, str] | None = None) -> Any | None:
    """The class `torchcodec.decoders.VideoDecoder`; None where PyAV is to decode.

    Args:
        environment: holds `VARIABLE`, or does not; None for `os.environ`.

    Raises:
        UnfitFileError: if the variable says something else, or asks for torchcodec, which cannot be used.
    """
    choice = (os.environ if environment is None else environment).get(VARIABLE) or CHOICES[0]
    if choice not in CHOICES:
        raise UnfitFileError(f"{VARIABLE} is {shown(choice)}, which is none of {', '.join(CHOICES)}")
    if choice == "pyav":
        return None
    found, why = _imported()
    if found is None and choice == "torchcodec":
        raise UnfitFileError(
            f"{VARIABLE} asks for torchcodec, which {why}; install the torchcodec that is made for your torch, and "
            "FFmpeg's shared libraries, or leave the variable out"
        )
    return found


@functools.cache
def _imported() -> tuple[Any | None, str]:
    """The class, or None and why; looked up once in a process. A broken installation is said once."""
    if importlib.util.find_spec("torchcodec") is None:
        return None, "is not installed"
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [""])[0]
        why = f"cannot be imported ({type(error).__name__}: {first[:200]})"
        logger.warning("torchcodec %s; videos are decoded with PyAV. %s=pyav leaves this out.", why, VARIABLE)
        return None, why
    return VideoDecoder, ""


def frames_like(
    decoder: Any,
    path: Path,
    stream: int,
    seconds: Mapping[int, float],
    total: int,
    first: np.ndarray,
    keep: Callable[[np.ndarray], Kept],
) -> dict[int, Kept] | None:
    """Chosen frames of a file; None where they are not, or may not be, those that PyAV gives.

    Args:
        decoder: result of `torchcodec_decoder`.
        path: the file.
        stream: number of its stream.
        seconds: time of each chosen frame by its number, ascending.
        total: frames of the whole file.
        first: uint8 [H, W, 3], the first of them in RGB as PyAV decodes it.
        keep: called with each frame, uint8 [H, W, 3]; returns what is kept of it.
    """
    try:
        video = decoder(str(path.resolve()), stream_index=stream, dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(video) != total:
            return None
        taken: dict[int, Kept] = {}
        for number, time in seconds.items():
            frame = video.get_frame_at(number)
            pixels = frame.data.numpy()  # [H, W, 3]
            in_place = abs(float(frame.pts_seconds) - time) < _SAME_TIME
            if pixels.dtype != np.uint8 or pixels.shape != first.shape or not in_place:
                return None
            if not taken and not np.array_equal(pixels, first):
                logger.debug("torchcodec gives other pixels of %s than PyAV, which decodes it.", path)
                return None
            taken[number] = keep(pixels)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, OSError) as error:
        logger.debug("torchcodec cannot read %s, PyAV decodes it: %s", path, error)
        return None
    return taken
