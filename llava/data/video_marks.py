"""Marks of videos in text, as Video-LLaVA writes them: a `<video>` stands for an `<image>` for each of its frames."""

from __future__ import annotations

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VID_END_TOKEN,
    DEFAULT_VID_START_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    MAX_IMAGE_LENGTH,
    MAX_VIDEO_LENGTH,
)


def expand_marks(turn: str, num_frames: int, use_im_start_end: bool = False) -> str:
    """A turn in which each `<video>` has become `num_frames` `<image>`; nothing is moved or stripped.

    Args:
        turn: as a record or a user has it.
        num_frames: frames that are shown of a video.
        use_im_start_end: whether each image stands between `<im_start>` and `<im_end>`, and the frames of a video
            together between `<vid_start>` and `<vid_end>`.
    """
    image, video = DEFAULT_IMAGE_TOKEN, DEFAULT_IMAGE_TOKEN * num_frames
    if use_im_start_end:
        image = f"{DEFAULT_IM_START_TOKEN}{image}{DEFAULT_IM_END_TOKEN}"
        video = f"{DEFAULT_VID_START_TOKEN}{video}{DEFAULT_VID_END_TOKEN}"
    return turn.replace(DEFAULT_IMAGE_TOKEN, image).replace(DEFAULT_VIDEO_TOKEN, video)


def within_published_limits(turn: str) -> str:
    """A turn as Video-LLaVA's training takes it: of one that starts with a mark, one video and 16 images in a run.

    Here neither is a limit; this is for comparisons with that program.

    Raises:
        ValueError: if such a turn has two videos.
    """
    if not turn.startswith((DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)):
        return turn
    images = turn.count(DEFAULT_IMAGE_TOKEN)
    if images > MAX_IMAGE_LENGTH:
        turn = turn.replace(DEFAULT_IMAGE_TOKEN * images, DEFAULT_IMAGE_TOKEN * MAX_IMAGE_LENGTH).strip()
    videos = turn.count(DEFAULT_VIDEO_TOKEN)
    if videos > MAX_VIDEO_LENGTH:
        raise ValueError(f"A turn holds {videos} {DEFAULT_VIDEO_TOKEN}; Video-LLaVA's training takes one.")
    return turn
