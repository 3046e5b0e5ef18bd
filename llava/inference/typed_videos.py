"""Videos by path: a file, an animation, or a folder of frames, decoded as a model's family shows them."""

from __future__ import annotations

from pathlib import Path

from llava.data.families.base import ModelInputs
from llava.data.frames import Frames
from llava.data.images import shown_name
from llava.data.video import open_video
from llava.inference.places import is_address, is_missing, typed_place


def read_video(place: str, inputs: ModelInputs) -> Frames:
    """The frames of a video that a model is shown.

    Args:
        place: path, also as `typed_place` takes it: a video file, an animation, or a folder of frames.
        inputs: `ModelInputs` of the model, which says what frames it takes.

    Raises:
        ValueError: if there is none, it cannot be read, or the model cannot be shown it; names it.
    """
    path = checked_video(place)
    frames = open_video(path, inputs.frame_numbers, inputs.image_opening)
    inputs.video(frames, f"Video {shown_name(str(path))}")  # to say now what would be said when it is asked about
    return frames


def checked_video(place: str) -> Path:
    """The path of a video that is there.

    Raises:
        ValueError: if there is none; names it.
    """
    place = typed_place(place)
    if is_address(place):
        raise ValueError(
            f"Video {shown_name(place)} cannot be read: addresses are fetched of images alone; give a path."
        )
    if is_missing(place):
        raise ValueError(f"There is no video {shown_name(place)}; give a file or a folder of frames.")
    return Path(place)
