"""Checks videos: existence, readability, size, and whether they have as many frames as are shown."""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterable
from pathlib import Path

from llava.common.image_limits import ImageLimitError, check_prepared
from llava.common.outside_files import why_unreadable
from llava.data.check.check_settings import VIDEO, CheckSettings
from llava.data.check.findings import Finding
from llava.data.check.preparing import own_inputs
from llava.data.frames import frame_numbers
from llava.data.images import BadImageError, image_path, why_unusable
from llava.data.video import count_frames, open_video


def check_videos(chunk: Iterable[tuple[str, str]], settings: CheckSettings) -> list[tuple[Finding, ...]]:
    """Check (video folder, name) pairs; nothing that a file holds makes this raise."""
    return [tuple(_check(folder, name, settings)) for folder, name in chunk]


def _check(folder: str, name: str, settings: CheckSettings) -> list[Finding]:
    if not settings.frames:
        return []  # each record of it is told that it is not shown
    try:
        path = image_path(folder, name, "video")
    except BadImageError:
        return [Finding("video_outside_folder", name)]
    fault = _file_fault(path, name)
    if fault is not None:
        return [fault]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            total = _count(path, name, settings)
    except _RefusedError as error:
        return [Finding("video_refused", str(error))]
    except Exception as error:  # decoders raise many kinds on damaged files, as they would in training
        return [_broken(name, error)]
    if settings.counted_frames and total is not None and total < settings.frames:
        return [Finding("video_short", f"{name}: {total} of {settings.frames} frames")]
    return []


class _RefusedError(Exception):
    """The model's own processor does not take a video; the message says why."""


def _count(path: Path, name: str, settings: CheckSettings) -> int | None:
    """Frames of a video; None where only decoding would tell.

    The frames that are shown are decoded, and prepared as far as that can fail, unless headers are to do.
    """
    if settings.images != "full":
        return count_frames(path)
    inputs = own_inputs(settings, "video_processor")
    if inputs is None:
        frames = open_video(path, lambda total, _: frame_numbers(total, settings.frames), settings.image_opening)
        for size in {picture.size for picture in frames}:
            if settings.family == VIDEO:
                check_prepared(size, None)
        return frames.total
    frames = open_video(path, inputs.frame_numbers, settings.image_opening)
    try:
        inputs.video(frames, name)
    except ValueError as error:  # as in training, where it makes a sample a bad one
        raise _RefusedError(error) from error
    return frames.total


def _file_fault(path: Path, name: str) -> Finding | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return Finding("video_missing", name)
    except (OSError, ValueError) as error:
        return Finding("video_unreadable", f"{name}: {why_unreadable(error)}")
    if stat.S_ISDIR(status.st_mode):
        return None if any(path.iterdir()) else Finding("video_empty", name)
    return None if status.st_size else Finding("video_empty", name)


def _broken(name: str, error: Exception) -> Finding:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    if isinstance(cause, ImageLimitError):
        return Finding("video_bomb", f"{name}: {cause}")
    of_the_system = isinstance(cause, OSError) and cause.errno
    return Finding("video_unreadable" if of_the_system else "video_broken", f"{name}: {why_unusable(cause)}")
