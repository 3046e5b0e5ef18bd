"""Reads chosen frames of a video, as RGB images; no other frame is kept."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.common.image_headers import UnfitFileError
from llava.common.image_limits import ImageLimitError, open_image_file
from llava.common.image_opening import DEFAULT_OPENING, as_rgb, check_opening
from llava.common.outside_files import why_unreadable
from llava.common.shown import printable
from llava.data.frames import Frames
from llava.data.images import LONGEST_NAME, BadImageError, MissingImageError, explained, open_rgb
from llava.data.video_files import decode_frames, frames_by_header

FrameChoice = Callable[[int, float | None], list[int]]
"""Says which frames to take, in order, from how many there are and how many a second (None where nothing says)."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
ANIMATION_SUFFIXES = (".gif", ".apng", ".webp")
DRAWN_SUFFIXES = (*ANIMATION_SUFFIXES, ".png")
"""Of files that Pillow reads, of one frame or more; a `.png` that is animated seldom says so in its name."""
ANIMATION_FORMATS = ("GIF", "PNG", "WEBP")
MOST_COMPOSED_PIXELS = 10**10
"""Largest product of pixels and frames of an animation: to decode one frame, all before it are composed."""
MOST_SHOWN_PIXELS = 10**9
"""Most pixels of the frames of one question, together; a pixel takes four bytes until it is prepared."""
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")

# By the signs of a, b, c, d in ISO 14496-12's matrix: a pixel at (x, y) is shown at (ax + cy, bx + dy). Angles other
# than right ones are left as decoded.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}


def open_video(path: Path, choose: FrameChoice, opening: str = DEFAULT_OPENING) -> Frames:
    """The chosen frames of a video, as RGB images.

    Args:
        path: a folder of images in the order of their names, an animation such as a GIF, or a video file, which needs
            the package `av`.
        choose: says which frames to take; `ModelInputs.frame_numbers` of the model that is shown them.
        opening: `upright` or `llava`, see `llava.common.image_opening`; the rotation marks of videos follow it too.

    Raises:
        BadImageError: if the video is missing or cannot be read, its frames are larger than images may be (see
            `llava.common.image_limits`), the frames together have more than `MOST_SHOWN_PIXELS`, or `choose` refuses
            it with a ValueError.
    """
    name = printable(str(path), LONGEST_NAME)
    try:
        kind = path.stat().st_mode
    except FileNotFoundError as error:
        raise MissingImageError(f"There is no video {name}.") from error
    except (OSError, ValueError) as error:
        raise BadImageError(f"Video {name} cannot be read: {why_unreadable(error)}.") from error
    choose = _refusing_in_words(choose)
    with explained(f"Video {name}"):
        if stat.S_ISDIR(kind):
            return _from_folder(path, choose, opening)
        if not stat.S_ISREG(kind):
            raise UnfitFileError("it is neither a file nor a folder of images")
        if path.suffix.lower() in DRAWN_SUFFIXES:
            return _from_animation(path, choose, opening)
        return _from_video(path, choose, opening)


def _refusing_in_words(choose: FrameChoice) -> FrameChoice:
    """The same choice, whose refusals are no sign of a damaged file."""

    def chosen(total: int, fps: float | None) -> list[int]:
        try:
            return choose(total, fps)
        except ValueError as error:
            raise UnfitFileError(str(error).rstrip(".")) from error

    return chosen


def count_frames(path: Path) -> int | None:
    """Frames of a video by its headers, nothing decoded; None where they do not say.

    Raises:
        BadImageError: if the video cannot be opened, or its frames are larger than images may be.
    """
    with explained(f"Video {printable(str(path), LONGEST_NAME)}"):
        if path.is_dir():
            return len(_frame_files(path))
        if path.suffix.lower() in DRAWN_SUFFIXES:
            with open_image_file(path, ANIMATION_FORMATS) as image:
                return int(getattr(image, "n_frames", 1))
        try:
            return frames_by_header(path)
        except _av().FFmpegError as error:
            raise ValueError(error) from error


def _frame_files(path: Path) -> list[Path]:
    """The images of a folder, in the order of their names; hidden files (`._1.jpg`, as macOS leaves them) are none."""
    shown_files = (file for file in path.iterdir() if not file.name.startswith("."))
    files = sorted((file for file in shown_files if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not files:
        raise UnfitFileError(f"the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return files


def _from_folder(path: Path, choose: FrameChoice, opening: str) -> Frames:
    files = _frame_files(path)
    numbers = choose(len(files), None)
    taken: dict[int, Image.Image] = {}
    for number in sorted(set(numbers)):
        taken[number] = open_rgb(files[number], opening)
        _check_shown(sum(picture.width * picture.height for picture in taken.values()))
    return Frames(tuple(taken[number] for number in numbers), tuple(numbers), len(files))


def _check_shown(pixels: int) -> None:
    if pixels > MOST_SHOWN_PIXELS:
        raise ImageLimitError(
            f"the frames of one question have {pixels} pixels, more than the {MOST_SHOWN_PIXELS} that are accepted; "
            "ask for fewer frames, or scale them down"
        )


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key by which 2.jpg comes before 10.jpg."""
    parts = re.split(r"([0-9]+)", path.name)  # every second one is a number
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _from_animation(path: Path, choose: FrameChoice, opening: str) -> Frames:
    with open_image_file(path, ANIMATION_FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames * image.width * image.height > MOST_COMPOSED_PIXELS:
            raise ImageLimitError(
                f"{frames} frames of {image.width} x {image.height} are more than {MOST_COMPOSED_PIXELS} pixels to "
                "draw; make it a video file or a folder of images"
            )
        numbers = choose(frames, None)
        _check_shown(len(set(numbers)) * image.width * image.height)
        taken = {}
        for number in sorted(set(numbers)):
            image.seek(number)
            taken[number] = as_rgb(image, opening)
    return Frames(tuple(taken[number] for number in numbers), tuple(numbers), frames)


def _av() -> Any:
    """The package `av`."""
    try:
        import av
    except ImportError as error:
        raise UnfitFileError(
            "the package av is not installed, which reads video files: `pip install av`, or replace the file by a "
            "folder of its frames"
        ) from error
    return av


def _from_video(path: Path, choose: FrameChoice, opening: str) -> Frames:
    av = _av()

    def keep(frame: Any, count: int) -> Image.Image:
        _check_shown(count * frame.width * frame.height)
        return _picture(frame, opening)

    try:
        taken, numbers, index = decode_frames(path, choose, keep, Image.fromarray)
    except av.FFmpegError as error:
        raise ValueError(error) from error
    return Frames(tuple(taken[number] for number in numbers), tuple(numbers), index.total, index.fps)


def _picture(frame: Any, opening: str) -> Image.Image:
    """A decoded frame as RGB; under `upright` turned and mirrored as the display matrix of its track says."""
    picture: Image.Image = frame.to_image().convert("RGB")
    if check_opening(opening) == "llava":
        return picture
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32, 9)
            turn = _TURNS.get((_sign(a), _sign(b), _sign(c), _sign(d)))
            return picture if turn is None else picture.transpose(turn)
    return picture


def _sign(number: Any) -> int:
    return int(np.sign(number))
