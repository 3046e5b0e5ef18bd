"""Which frames of a video are shown, and the frames themselves once they are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Frames:
    """Frames of one video.

    Attributes:
        pictures: in RGB, in the order in which they are shown; a short video may give a frame several times.
        numbers: number of each in the video, from 0.
        total: frames of the whole video.
        fps: frames a second of the whole video; None where nothing says, as in a folder of images.
    """

    pictures: tuple[Image.Image, ...]
    numbers: tuple[int, ...]
    total: int
    fps: float | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.pictures)


@dataclass(frozen=True)
class FrameSampling:
    """What was asked for of the frames of videos; each None where nothing was, and the family decides.

    Attributes:
        count: frames of every video, at equal distances from the first to the last.
        fps: frames taken of every second (`--video_fps`); for videos that say how fast they are.
        most: where `fps` takes more than so many, so many at equal distances (`--frames_upbound`).

    Raises:
        ValueError: if a number is not above 0.
    """

    count: int | None = None
    fps: float | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value in (("count", self.count), ("fps", self.fps), ("most", self.most)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"Frames of videos: {name} is {value}; it must be above 0.")

    def numbers(self, total: int, fps: float | None, usual: int) -> list[int]:
        """Which of the frames of a video are shown, in order.

        With `fps` those of LLaVA-NeXT: every k-th from the first, k being the video's frames a second over those asked
        for, rounded (at least 1).

        Args:
            total: frames of the video, at least 1.
            fps: its frames a second, if known.
            usual: frames of a video where no number was asked for.
        """
        if self.count is None and self.fps is not None and fps is not None:
            taken = list(range(0, total, max(round(fps / self.fps), 1)))
            return taken if self.most is None or len(taken) <= self.most else frame_numbers(total, self.most)
        count = self.count or usual
        return frame_numbers(total, count if self.most is None else min(count, self.most))


def frame_numbers(total: int, count: int) -> list[int]:
    """`count` numbers at equal distances, rounded down, from the first of `total` to the last; 0 where it is one."""
    return [number * (total - 1) // max(count - 1, 1) for number in range(count)]
