"""How large images and videos may be in front of a processor that keeps their size: flags of Qwen's programs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class MediaLimits:
    """What was asked for; each None where the processor's own setting stays.

    Attributes:
        min_pixels, max_pixels: sizes of an image: smaller ones are enlarged, larger ones shrunk (28 x 28 of Qwen2.5-VL
            become a token).
        video_min_pixels, video_max_pixels: bounds of the pixels of each frame of a video.
        video_min_frames, video_max_frames: numbers of frames of a video whose frames are taken by the second.
        video_fps: frames taken of every second.
        video_flip: share of the videos of a Video-LLaVA that are mirrored left to right, chosen by their names; its
            published program mirrors half of them.

    Raises:
        ValueError: if a number is not above 0, or more than all videos are to be mirrored.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_min_frames: int | None = None
    video_max_frames: int | None = None
    video_fps: float | None = None
    video_flip: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in self.given().items():
            if not value > 0:
                raise ValueError(f"--{name} is {value}; it must be above 0.")
        if self.video_flip is not None and self.video_flip > 1:
            raise ValueError(f"--video_flip is {self.video_flip}; it is a share, so at most 1.")

    def given(self) -> dict[str, Any]:
        """What was asked for, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def applied_to(self, processor: Any) -> Any:
        """The same processor with these limits; it is copied where one is asked for.

        Args:
            processor: processor of transformers, or `llava.checkpoints.processors.ProcessorParts`.

        Raises:
            ValueError: if it has no such limits, or the smaller of two is above the larger; names the flag.
        """
        if self.video_flip is not None:
            return replace(self, video_flip=None).applied_to(mirroring(processor, self.video_flip))
        if self == MediaLimits():
            return processor
        changed = copy.copy(processor)
        for attribute, start in (("image_processor", ""), ("video_processor", "video_")):
            mine = {name: value for name, value in self.given().items() if name.startswith("video_") == bool(start)}
            given = {name.removeprefix(start): value for name, value in mine.items()}
            if given:
                part = limited(getattr(processor, attribute, None), given, start)
                object.__setattr__(changed, attribute, part)
        return changed


def mirroring(processor: Any, share: float) -> Any:
    """The processors of a Video-LLaVA, by kind, where that of videos mirrors a share of them.

    Raises:
        ValueError: if it is not a Video-LLaVA's.
    """
    video = processor.get("video") if isinstance(processor, Mapping) else None
    if video is None:
        raise ValueError("--video_flip mirrors the videos of a Video-LLaVA, and the model is none; leave it out.")
    return {**processor, "video": video.flipping(share)}


def limited(part: Any, given: dict[str, Any], start: str) -> Any:
    """A copy of an image or video processor with other limits.

    Args:
        part: the processor; None where there is none.
        given: limits by name, of `min_pixels`, `max_pixels`, `min_frames`, `max_frames` and `fps`.
        start: what the names of the flags begin with, `` or `video_`.

    Raises:
        ValueError: as in `MediaLimits.applied_to`.
    """
    flags = ", ".join(f"--{start}{name}" for name in given)
    what = "videos" if start else "images"
    size = dict(getattr(part, "size", None) or {})
    bounded = size.get("shortest_edge") is not None and size.get("longest_edge") is not None
    if not bounded or not hasattr(part, "patch_size"):
        raise ValueError(
            f"{flags} was given, but the model's processor of {what} has no limits of pixels; leave it out."
            if part is not None
            else f"{flags} was given, but the model has no processor of {what} here (that of Qwen's needs torchvision)."
        )
    changed = copy.deepcopy(part)
    edges = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    size |= {edges[name]: value for name, value in given.items() if name in edges}
    least, most = size["shortest_edge"], size["longest_edge"]
    if least > most:
        raise ValueError(f"{flags}: the smallest number of pixels, {least}, is above the largest, {most}; give both.")
    changed.size = type(part.size)(**size) if not isinstance(part.size, dict) else size
    for name, value in given.items():
        if name not in edges:
            setattr(changed, name, value)
    fewest, greatest = (getattr(changed, name, None) for name in ("min_frames", "max_frames"))
    if fewest is not None and greatest is not None and fewest > greatest:
        raise ValueError(
            f"{flags}: the smallest number of frames, {fewest}, is above the largest, {greatest}; give both."
        )
    return changed
