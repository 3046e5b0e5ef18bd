"""Frames of a video, as images."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava.data.images import explained, open_rgb
from llava.image_opening import DEFAULT_OPENING, as_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
ANIMATION_SUFFIXES = (".gif", ".apng", ".webp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")


def read_frames(path: Path, count: int, opening: str = DEFAULT_OPENING) -> list[Image.Image]:
    """Frames of a video at equal distances, the first and the last among them, as RGB images.

    A video with fewer frames gives some of them twice, so that every question shows as many images.

    Args:
        path: a folder of images in the order of their names, an animation such as a GIF, or a video file, which needs
            the package `av`.
        count: frames to take.
        opening: of the images of a folder or an animation, see `llava.image_opening`.

    Raises:
        ValueError: if the video is missing or cannot be read, or count is below 1.
    """
    if count < 1:
        raise ValueError(f"{count} frames of {path} are asked for; ask for 1 or more.")
    if not path.exists():
        raise ValueError(f"There is no video {path}.")
    with explained(f"Video {path}"):
        if path.is_dir():
            return _from_folder(path, count, opening)
        if path.suffix.lower() in ANIMATION_SUFFIXES:
            return _from_animation(path, count, opening)
        return _from_video(path, count)


def frame_numbers(total: int, count: int) -> list[int]:
    """Which of `total` frames are taken: numbers at equal distances, rounded down, from the first to the last."""
    return [int(number) for number in np.linspace(0, total - 1, count, dtype=int)]


def _from_folder(path: Path, count: int, opening: str) -> list[Image.Image]:
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not files:
        raise ValueError(f"the folder holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return [open_rgb(files[number], opening) for number in frame_numbers(len(files), count)]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts 2.jpg before 10.jpg."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _from_animation(path: Path, count: int, opening: str) -> list[Image.Image]:
    with Image.open(path) as image:
        wanted = frame_numbers(getattr(image, "n_frames", 1), count)
        taken = {}
        for number in sorted(set(wanted)):
            image.seek(number)
            taken[number] = as_rgb(image, opening)
    return [taken[number] for number in wanted]


def _from_video(path: Path, count: int) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise ValueError(
            "the package av is not installed, which reads video files: `pip install av`, or replace the file by a "
            "folder of its frames"
        ) from error
    try:
        return _decode(av, path, count)
    except av.FFmpegError as error:
        raise ValueError(error) from error


def _decode(av: Any, path: Path, count: int) -> list[Image.Image]:
    """Frames of a video file; where it ends before its packets said, the last one stands for those missing."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("it holds no pictures")
        total = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    wanted = frame_numbers(max(total, 1), count)
    taken: dict[int, Image.Image] = {}
    last = None
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, last in enumerate(container.decode(container.streams.video[0])):
            if number in wanted:
                taken[number] = last.to_image().convert("RGB")
            if number == wanted[-1]:
                break
    if last is None:
        raise ValueError("it holds no pictures")
    end = last.to_image().convert("RGB")
    return [taken.get(number, end) for number in wanted]
