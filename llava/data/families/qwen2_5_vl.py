"""Inputs of Qwen2.5-VL: images and videos of any size, cut into patches by its processor, frames by the second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from llava.compression.config import V2VConfig
from llava.data.families.base import Sample
from llava.data.families.processor import TEXT_ARGUMENTS, ProcessorInputs, Shown
from llava.data.frames import Frames
from llava.data.processor_collator import ProcessorCollator
from llava.model.splice import PlanSettings

FRAMES_A_SECOND = 2.0
"""Default of Qwen's own code, for a processor that says no other."""


class Qwen2_5_VLInputs(ProcessorInputs):  # noqa: N801 (theirs)
    """Inputs of Qwen2.5-VL; a medium's mark is the whole of `<|vision_start|>`, its placeholders, `<|vision_end|>`."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    image_inputs = ("pixel_values", "image_grid_thw")
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
    arguments: ClassVar[tuple[str, ...]] = (*TEXT_ARGUMENTS, *image_inputs, *video_inputs)

    @property
    def placeholder_ids(self) -> tuple[int, int]:
        """As in `ProcessorInputs`."""
        return self.config.image_token_id, self.config.video_token_id

    def placeholders(self, kind: str, made: Mapping[str, Any], frames: Frames | None) -> list[int]:
        """As in `ProcessorInputs`: as many as there are groups of patches."""
        token = self.placeholder_ids[kind == "video"]
        grid = made["video_grid_thw" if kind == "video" else "image_grid_thw"][0]
        count = int(grid.prod()) // self.config.vision_config.spatial_merge_size**2
        return [self.config.vision_start_token_id, *[token] * count, self.config.vision_end_token_id]

    def merged_away(self, sample: Sample, v2v: V2VConfig | None) -> int:
        """As in `ModelInputs`: of each image, and of each frame, the budget stays."""
        if v2v is None:
            return 0
        left_out, group = 0, self.config.vision_config.spatial_merge_size**2
        for shown in sample["images"]:
            grid = shown.inputs["video_grid_thw" if shown.kind == "video" else "image_grid_thw"]  # [1, 3]
            for time, height, width in grid.tolist():
                tokens = height * width // group
                left_out += time * max(0, tokens - sum(v2v.counts(tokens)))
        return left_out

    def made_video(self, frames: Frames, what: str) -> dict[str, Any]:
        """As in `ProcessorInputs`, with the seconds of each group of frames, by which positions are counted."""
        made = super().made_video(frames, what)
        seconds = self.video_processor().temporal_patch_size / made["video_metadata"].sampled_fps
        return made | {"second_per_grid_ts": torch.tensor([seconds])}

    def collator(self, image_size: int | None = None, settings: PlanSettings | None = None) -> ProcessorCollator:
        """As in `ProcessorInputs`; seconds are plain numbers, for DeepSpeed rounds tensors to bfloat16.

        Positions in time are whole parts of products with them, so that a rounding moves frames.
        """
        return dataclasses.replace(super().collator(image_size, settings), media_arguments=self._with_plain_seconds)

    def _with_plain_seconds(self, media: Sequence[Shown]) -> dict[str, Any]:
        made = self.media_arguments(media)
        if "second_per_grid_ts" in made:
            made["second_per_grid_ts"] = made["second_per_grid_ts"].tolist()
        return made

    def frame_numbers(self, total: int, fps: float | None) -> list[int]:
        """As in `ModelInputs`: frames at equal distances, as many as the processor's rule takes for the seconds.

        Where nothing says how fast the video is, as of a folder of frames, all of them up to the largest number. At
        least one group of frames is taken, whatever the limits.
        """
        from transformers.video_utils import VideoMetadata

        processor, asked = self.video_processor(), self.sampling
        group = processor.temporal_patch_size
        if total < group:
            return list(range(total))  # the processor repeats the last
        metadata = VideoMetadata(total_num_frames=total, fps=fps)
        if asked.count is None and fps is not None:
            rate = asked.fps or processor.fps or FRAMES_A_SECOND
            fewest, most = (max(frames, group) for frames in (processor.min_frames, asked.most or processor.max_frames))
            numbers = processor.sample_frames(metadata, min_frames=fewest, max_frames=most, fps=rate)
        else:
            most = min(asked.count or total, asked.most or processor.max_frames, total)
            numbers = processor.sample_frames(metadata, num_frames=max(most - most % group, group))
        return [number for number in numbers.tolist() if number < total]
