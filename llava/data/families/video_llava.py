"""Video-LLaVA: LLaVA's format with videos of a fixed number of frames, each an `<image>` in the text."""

from __future__ import annotations

import copy
import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from llava.common.image_limits import check_prepared
from llava.constants import (
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    LITERAL_IMAGE_TOKEN,
    WRITTEN_IMAGE_TOKEN,
)
from llava.data.families.llava import LlavaInputs
from llava.data.frames import Frames
from llava.data.images import within_limits
from llava.data.mark_words import words_of_others
from llava.data.records import wrap_image_marks
from llava.data.video_marks import expand_marks
from llava.mm_utils import aspect_ratio_of, preprocess_image
from llava.model.mixed_media import marks_of


class VideoLlavaInputs(LlavaInputs):
    """Inputs of a Video-LLaVA: images [3, height, width] and videos [3, T, height, width].

    The processor is a mapping with one for `image` and one for `video`, each None where there is no such tower. Marks
    stay where they were written.
    """

    media_first = False

    @classmethod
    def serves(cls, config: Any) -> bool:
        """A LLaVA with towers of their own for images and for videos."""
        return bool(getattr(config, "sees_videos", False))

    @classmethod
    def frames_of(cls, config: Any) -> int:
        """As in `ModelInputs`: those that the video tower was trained with."""
        return int((config.mm_video_config or {}).get("num_frames", cls.usual_frames))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        video = self._processor("video")
        if video is None:
            return
        timed = (self.config.mm_video_config or {}).get("add_time_attn", True)
        count, fps, most = self.sampling.count, self.sampling.fps, self.sampling.most
        if timed and (fps is not None or any(asked not in (None, video.num_frames) for asked in (count, most))):
            raise ValueError(
                f"The model attends over {video.num_frames} frames of a video, at equal distances; leave out the "
                f"number of frames, or ask for {video.num_frames}."
            )
        if fps is not None:
            raise ValueError(
                f"Frames of videos: fps is {fps:g}, but a Video-LLaVA is shown as many of every video; leave "
                "--video_fps out, and say how many with --frames_upbound."
            )
        self.usual_frames = self.frames_of(self.config)  # type: ignore[misc]

    def _processor(self, kind: str) -> Any:
        return self.processor.get(kind) if isinstance(self.processor, Mapping) else None

    def _required(self, kind: str) -> Any:
        processor = self._processor(kind)
        if processor is None:
            raise ValueError(f"The model is shown an {kind}, but has no tower for such (mm_{kind}_tower).")
        return processor

    def image(self, picture: Image.Image, what: str) -> Tensor:
        """As in `ModelInputs`; returns pixels [3, height, width]."""
        processor = self._required("image")
        with within_limits(what):
            return preprocess_image(picture, processor, aspect_ratio_of(self.config))

    def video(self, frames: Frames, what: str) -> list[Tensor]:
        """As in `ModelInputs`; returns one clip [3, T, height, width].

        Whether it is mirrored, where the processor does so (`flip`), depends on its name alone, so that a run that is
        gone on with sees the same.
        """
        processor = self._required("video")
        mirrored = random.Random(what).random() < processor.flip
        with within_limits(what):
            for size in {frame.size for frame in frames}:
                check_prepared(size, None, processor.side)
            return [processor.pixels(list(frames), mirrored)]

    def for_evaluation(self) -> VideoLlavaInputs:
        """As in `ModelInputs`; nothing is mirrored."""
        if self._processor("video") is None:
            return self
        same = copy.copy(self)
        same.processor = {**self.processor, "video": self.processor["video"].flipping(0.0)}
        return same

    @property
    def trains_on_videos(self) -> bool:
        """As in `ModelInputs`."""
        return self._processor("video") is not None

    def marks(self, medium: Any) -> int:
        """As in `ModelInputs`; one for an image, and one for each frame of a video."""
        return marks_of(medium)

    def media_arguments(self, media: Sequence[Any]) -> dict[str, Any]:
        """As in `LlavaInputs`: one list of both kinds."""
        return {"images": list(media)}

    def question(self, text: str, media: Sequence[Any]) -> str:
        """As in `ModelInputs`; a video is marked by `<video>`, or by an `<image>` for each of its frames.

        A `<video>` that is one too many is a word.
        """
        text = text.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)
        videos = [medium for medium in media if medium.dim() == 4]
        written = text.count(DEFAULT_VIDEO_TOKEN)
        if videos and written == len(videos) and text.count(DEFAULT_IMAGE_TOKEN) == len(media) - len(videos):
            return self.marked(text)
        marks, expected = text.count(DEFAULT_IMAGE_TOKEN), sum(map(self.marks, media))
        if marks not in (0, expected):
            raise ValueError(
                f"The question holds {marks} {DEFAULT_IMAGE_TOKEN} and {written} {DEFAULT_VIDEO_TOKEN}, but "
                f"{len(media) - len(videos)} images and {len(videos)} videos were given; write a mark for each, or "
                f"none to have them in front. {WRITTEN_IMAGE_TOKEN} is the word itself."
            )
        if marks:
            return wrap_image_marks(text, self._start_end, use_image_tags=False)
        front = "".join(DEFAULT_VIDEO_TOKEN if medium.dim() == 4 else DEFAULT_IMAGE_TOKEN for medium in media)
        return self.marked(front) + "\n" * bool(media) + text

    def written_mark(self, media: Sequence[Any]) -> str:
        """As in `ModelInputs`."""
        return "".join(DEFAULT_VIDEO_TOKEN if medium.dim() == 4 else DEFAULT_IMAGE_TOKEN for medium in media)

    def marked(self, turn: str) -> str:
        """As in `ModelInputs`; the model's `mm_use_im_start_end` puts the frames of a video between two tokens."""
        return expand_marks(turn, self.video_marks, self._start_end)

    def taught(self, turn: str, kinds: Collection[str]) -> str:
        """As in `ModelInputs`; nothing is moved to the front."""
        return self.marked(words_of_others(turn, kinds))
