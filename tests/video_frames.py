"""Frames of a video at equal distances, read as the programs read them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from llava.common.image_opening import DEFAULT_OPENING
from llava.data.frames import frame_numbers
from llava.data.video import open_video


def read_frames(path: Path, count: int, opening: str = DEFAULT_OPENING) -> list[Image.Image]:
    """`count` of the frames, the first and the last among them; some of them twice where there are fewer."""
    return list(open_video(path, lambda total, fps: frame_numbers(total, count), opening))
