"""Pixels of images and videos as LanguageBind's towers were trained with them.

Both are resized without antialiasing, which is not what CLIP's image processor does: an image as a float tensor by
cubic interpolation with a = -0.75, the frames of a video linearly and after normalisation. The corner of the centre
crop rounds halves to the even number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

DEFAULT_SIDE = 224
VIDEO_SETTINGS_FILE = "video_preprocessor_config.json"


class _Pixels:
    """Size and normalisation; what reads like an image processor of transformers is what others ask of one."""

    file_name: ClassVar[str]
    type_field: ClassVar[str]

    def __init__(
        self,
        side: int = DEFAULT_SIDE,
        image_mean: Sequence[float] = OPENAI_CLIP_MEAN,
        image_std: Sequence[float] = OPENAI_CLIP_STD,
    ) -> None:
        self.side = side
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.do_pad = False

    @property
    def size(self) -> dict[str, int]:
        """Shorter side that pictures are scaled to."""
        return {"shortest_edge": self.side}

    @property
    def crop_size(self) -> dict[str, int]:
        """What is cut out of their middle."""
        return {"height": self.side, "width": self.side}

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON values."""
        return {
            self.type_field: type(self).__name__,
            "size": self.size,
            "crop_size": self.crop_size,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        }

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the settings beside a model's weights."""
        (Path(folder) / self.file_name).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def _normalised(self, pixels: Tensor) -> Tensor:
        """[..., 3, height, width] minus the mean, divided by the standard deviation of each channel."""
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.image_mean, self.image_std))
        return (pixels - mean) / std


class LanguageBindImageProcessor(_Pixels):
    """Pixels of images; `preprocess` as an image processor of transformers has it.

    Args:
        antialias: whether to resize as newer versions of torchvision do unless they are told not to (a = -0.5). The
            towers were not trained with that.
    """

    file_name = "preprocessor_config.json"
    type_field = "image_processor_type"

    def __init__(self, side: int = DEFAULT_SIDE, antialias: bool = False, **kwargs: Any) -> None:
        super().__init__(side, **kwargs)
        self.antialias = antialias

    def pixels(self, picture: Image.Image) -> Tensor:
        """float32 [3, side, side] of an image in RGB; ValueError for anything but a PIL image."""
        _require_pictures([picture])
        size = scaled_size(picture.height, picture.width, self.side)
        options: dict[str, Any] = {"mode": "bicubic", "align_corners": False, "antialias": self.antialias}
        planes = [functional.interpolate(plane[None, None], size, **options)[0, 0] for plane in _planes(picture)]
        return self._normalised(torch.stack([centre_crop(plane, self.side) for plane in planes]))

    def preprocess(self, images: Any, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """`pixel_values` [M, 3, side, side] of one image or several, each in RGB."""
        pictures = images if isinstance(images, (list, tuple)) else [images]
        return BatchFeature({"pixel_values": torch.stack([self.pixels(picture) for picture in pictures])})

    __call__ = preprocess


class LanguageBindVideoProcessor(_Pixels):
    """Pixels of the frames of a video.

    Args:
        num_frames: frames of a clip.
        flip: share of videos that are mirrored left to right, as a whole; the published program mirrors half of them,
            also at evaluation.
    """

    file_name = VIDEO_SETTINGS_FILE
    type_field = "video_processor_type"

    def __init__(self, num_frames: int = 8, flip: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= flip <= 1:
            raise ValueError(f"flip is {flip!r}; it is the share of videos that are mirrored, from 0 to 1.")
        self.num_frames = num_frames
        self.flip = flip

    def flipping(self, share: float) -> LanguageBindVideoProcessor:
        """The same with another `flip`."""
        own = {"image_mean": self.image_mean, "image_std": self.image_std}
        return LanguageBindVideoProcessor(self.num_frames, share, side=self.side, **own)

    def to_dict(self) -> dict[str, Any]:
        """Settings as JSON values; mirroring is no setting of a model."""
        return super().to_dict() | {"num_frames": self.num_frames}

    def pixels(self, frames: Sequence[Image.Image], mirrored: bool | None = None) -> Tensor:
        """float32 [3, T, side, side] of T frames in RGB.

        Args:
            frames: frames of one size.
            mirrored: whether left and right change places; None draws lots, by `flip`.

        Raises:
            ValueError: if there is no frame, one is no PIL image, or they differ in size.
        """
        _require_pictures(frames)
        sizes = {frame.size for frame in frames}
        if len(sizes) != 1:
            raise ValueError(f"The frames of a video must be of one size; here they are {sorted(sizes) or 'none'}.")
        size = scaled_size(frames[0].height, frames[0].width, self.side, rounds_quotient=True)
        clip = torch.stack([self._frame(frame, size) for frame in frames], dim=1)
        if mirrored is None:
            mirrored = random.random() < self.flip
        return clip.flip(-1) if mirrored else clip

    def _frame(self, picture: Image.Image, size: tuple[int, int]) -> Tensor:
        """float32 [3, side, side] of one frame: normalised, then scaled to (height, width), then cut."""
        planes = []
        for plane, mean, std in zip(_planes(picture), self.image_mean, self.image_std, strict=True):
            normalised = plane.sub_(torch.tensor(mean)).div_(torch.tensor(std))
            resized = functional.interpolate(normalised[None, None], size, mode="bilinear", align_corners=False)
            planes.append(centre_crop(resized[0, 0], self.side))
        return torch.stack(planes)

    def preprocess(self, videos: Any, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """`pixel_values` [M, 3, T, side, side] of the frames of one video or of several."""
        several = bool(videos) and isinstance(videos[0], (list, tuple))
        clips = [self.pixels(frames) for frames in (videos if several else [videos])]
        return BatchFeature({"pixel_values": torch.stack(clips)})

    __call__ = preprocess


def _require_pictures(pictures: Sequence[Any]) -> None:
    """Raise ValueError for what is no picture: a path, an array, pixels that were made already."""
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise ValueError(f"An image or frame is a {type(picture).__name__}; give PIL images, as Image.open does.")


def _planes(picture: Image.Image) -> Iterator[Tensor]:
    """float32 [height, width] from 0 to 1 of each channel, one at a time: a large image is never whole in floats."""
    array = np.asarray(picture.convert("RGB"))
    for channel in range(3):
        yield torch.from_numpy(array[..., channel].copy()).float().div_(255)


def scaled_size(height: int, width: int, side: int, rounds_quotient: bool = False) -> tuple[int, int]:
    """Height and width once the shorter one is `side`; the longer one is rounded down.

    Args:
        rounds_quotient: whether the longer one is `long / short * side`, as for videos, or `side * long / short`, as
            for images; in floating point the two can differ by a pixel.
    """
    short, long = min(height, width), max(height, width)
    scaled = int(long / short * side) if rounds_quotient else int(side * long / short)
    return (side, scaled) if height <= width else (scaled, side)


def centre_crop(pixels: Tensor, side: int) -> Tensor:
    """The middle [..., side, side] of [..., height, width]; a corner that falls on a half goes to the even number."""
    height, width = pixels.shape[-2:]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[..., top : top + side, left : left + side]
