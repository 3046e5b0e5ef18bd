"""Frames of videos as the programs read them, and which frames were decoded for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.common.image_opening import DEFAULT_OPENING
from llava.data import video_files
from llava.data.frames import frame_numbers
from llava.data.video import open_video


def read_frames(path: Path, count: int, opening: str = DEFAULT_OPENING) -> list[Image.Image]:
    """`count` of the frames, the first and the last among them; some of them twice where there are fewer."""
    return list(open_video(path, lambda total, fps: frame_numbers(total, count), opening))


def decoded_times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets the time of each frame that PyAV decodes from now on."""
    times: list[int] = []
    stock = video_files.decoded

    def decoded(container: Any, stream: Any) -> Any:
        for frame in stock(container, stream):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_files, "decoded", decoded)
    return times
