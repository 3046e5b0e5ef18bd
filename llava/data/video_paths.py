"""Video-LLaVA's processor of videos as its users call it: with the path of a video, too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import BatchFeature

from llava.data.frames import frame_numbers
from llava.data.video import open_video
from llava.model.multimodal_encoder.languagebind_pixels import LanguageBindVideoProcessor


class VideoFileProcessor(LanguageBindVideoProcessor):
    """Pixels of videos that are given as paths (a file, or a folder of frames) or as frames."""

    @classmethod
    def of(cls, processor: LanguageBindVideoProcessor) -> VideoFileProcessor:
        """One with the settings of another."""
        means = {"image_mean": processor.image_mean, "image_std": processor.image_std}
        return cls(processor.num_frames, processor.flip, side=processor.side, **means)

    def preprocess(self, videos: Any, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """`pixel_values` [M, 3, T, side, side]; of a path T frames at equal distances are taken.

        Args:
            videos: one video or a list: paths, or lists of frames.
            return_tensors: PyTorch's, whatever it says.
            kwargs: passed over.

        Raises:
            ValueError: if a video is missing or cannot be read.
        """
        single = isinstance(videos, str | os.PathLike) or isinstance(videos[0], Image.Image)
        return super().preprocess([self._frames(video) for video in ([videos] if single else videos)])

    __call__ = preprocess

    def _frames(self, video: Any) -> list[Image.Image]:
        if isinstance(video, str | os.PathLike):
            return list(open_video(Path(video), lambda total, fps: frame_numbers(total, self.num_frames)))
        return list(video)
