"""Inputs of Qwen3-VL: those of Qwen2.5-VL, with the time of each pair of a video's frames in words in front of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llava.data.families.processor import TEXT_ARGUMENTS
from llava.data.families.qwen2_5_vl import Qwen2_5_VLInputs
from llava.data.frames import Frames

USUAL_RATE = 24.0
"""Frames a second that the processor takes a video for where nothing says."""


class Qwen3VLInputs(Qwen2_5_VLInputs):
    """Inputs of Qwen3-VL, dense or a mixture of experts."""

    model_types = ("qwen3_vl", "qwen3_vl_moe")
    image_inputs = ("pixel_values", "image_grid_thw")
    video_inputs = ("pixel_values_videos", "video_grid_thw")
    arguments = (*TEXT_ARGUMENTS, *image_inputs, *video_inputs)

    def placeholders(self, kind: str, made: Mapping[str, Any], frames: Frames | None) -> list[int]:
        """As in `ProcessorInputs`: of a video, `<1.2 seconds>` and a group of frames, again and again."""
        if kind == "image" or frames is None:
            return super().placeholders(kind, made, frames)
        start, end = self.config.vision_start_token_id, self.config.vision_end_token_id
        time, height, width = made["video_grid_thw"][0].tolist()
        shown = [self.placeholder_ids[1]] * (height * width // self.config.vision_config.spatial_merge_size**2)
        ids = [start]
        for seconds in self._seconds(frames, time):
            said = self.tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False)["input_ids"]
            ids += [*said, start, *shown, end]
        return [*ids, end]

    def _seconds(self, frames: Frames, groups: int) -> list[float]:
        """When each group of frames is seen: midway from its first frame to its last, the last of all repeated."""
        size, fps = self.video_processor().temporal_patch_size, frames.fps or USUAL_RATE
        numbers = [*frames.numbers, *[frames.numbers[-1]] * (groups * size - len(frames))]
        return [(numbers[first] / fps + numbers[first + size - 1] / fps) / 2 for first in range(0, len(numbers), size)]

    def made_video(self, frames: Frames, what: str) -> dict[str, Any]:
        """As in `ProcessorInputs`; time is in the text."""
        return super(Qwen2_5_VLInputs, self).made_video(frames, what)

    def frame_numbers(self, total: int, fps: float | None) -> list[int]:
        """As in `ModelInputs`: frames at equal distances, as many as the processor's rule takes for the seconds.

        Where nothing says how fast the video is, as of a folder of frames, all of them up to the largest number. At
        least two are taken, whatever the limits; the frame of a video that has only one is shown twice.
        """
        from transformers.video_utils import VideoMetadata

        processor, asked = self.video_processor(), self.sampling
        if total == 1:
            return [0, 0]
        metadata, wanted = VideoMetadata(total_num_frames=total, fps=fps), asked.count or total
        if asked.count is None and fps is not None:
            wanted = len(processor.sample_frames(metadata, fps=asked.fps or processor.fps))
        count = max(min(wanted, asked.most or processor.max_frames, total), processor.temporal_patch_size)
        return list(processor.sample_frames(metadata, num_frames=count).tolist())
