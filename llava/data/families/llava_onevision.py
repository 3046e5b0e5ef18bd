"""Inputs of LLaVA-OneVision: one image in crops, several as they are, videos of a fixed number of frames."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava.compression.config import V2VConfig
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Segment, SegmentKind
from llava.data.families.base import Sample
from llava.data.families.processor import ProcessorInputs, Shown
from llava.data.frames import Frames
from llava.data.images import within_limits
from llava.data.tokenization import EncodedText
from llava.model.splice import PlanSettings

_STAND_IN = "\U000f0000text\U000f0001"


@dataclass(frozen=True)
class ShownImage(Shown):
    """An image in both of its forms.

    Attributes:
        beside_others: as it is shown in a conversation with several images: as one crop, made a square.
    """

    beside_others: Shown | None = None


class LlavaOnevisionInputs(ProcessorInputs):
    """Inputs of LLaVA-OneVision. A conversation with several images shows each as one crop, as its processor does."""

    model_types = ("llava_onevision",)
    image_inputs = ("pixel_values", "image_sizes", "batch_num_images")
    video_inputs = ("pixel_values_videos",)
    arguments = ("input_ids", "attention_mask", "query_mask", "labels", *image_inputs, *video_inputs)
    usual_frames = 32

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.sampling.fps is not None:
            raise ValueError(
                f"Frames of videos: fps is {self.sampling.fps}, but a llava_onevision is shown as many of every video, "
                f"{self.usual_frames} by default; leave --video_fps out, and say how many with --frames_upbound."
            )

    @property
    def placeholder_ids(self) -> tuple[int, int]:
        """As in `ProcessorInputs`."""
        return self.config.image_token_id, self.config.video_token_id

    def placeholders(self, kind: str, made: Mapping[str, Any], frames: Frames | None) -> list[int]:
        """As in `ProcessorInputs`."""
        side = self._side
        if kind == "video":
            pooled = math.ceil(side / 2)
            return [self.placeholder_ids[1]] * (made["pixel_values_videos"].shape[1] * pooled**2 + 1)
        if len(made["pixel_values"][0]) == 1:
            return [self.placeholder_ids[0]] * (side**2 + 1)
        height, width = self._map(*made["image_sizes"][0].tolist())
        return [self.placeholder_ids[0]] * (side**2 + height * (width + 1))

    @property
    def _side(self) -> int:
        """Tokens on a side of a crop."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def _map(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens that the crops of an image make together, without padding."""
        from transformers.image_processing_utils import select_best_resolution

        side = self._side
        best = select_best_resolution((height, width), self.config.image_grid_pinpoints)
        rows, columns = (size // self.config.vision_config.image_size * side for size in best)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        allowed = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_")) * side**2
        ratio = math.sqrt(rows * columns / allowed)
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def tower_tokens(self, medium: Shown) -> list[int]:
        """As in `ProcessorInputs`, of each crop and frame."""
        pixels = medium.inputs["pixel_values" if medium.kind == "image" else "pixel_values_videos"]
        return [self._side**2] * len(pixels.flatten(end_dim=-4))

    def merged_away(self, sample: Sample, v2v: V2VConfig | None) -> int:
        """As in `ModelInputs`: of each crop and each frame the budget stays, and of a medium the end of a line."""
        if v2v is None:
            return 0
        left_out = 0
        for shown in sample["images"]:
            is_image = shown.kind == "image"
            tokens = self._side**2 if is_image else math.ceil(self._side / 2) ** 2
            kept = len(self.tower_tokens(shown)) * min(tokens, sum(v2v.counts(tokens))) + 1
            left_out += max(0, shown.ids.count(self.placeholder_ids[not is_image]) - kept)
        return left_out

    def image(self, picture: Image.Image, what: str) -> ShownImage:
        """As in `ModelInputs`, in both forms."""
        alone = super().image(picture, what)
        with within_limits(what):
            both = self.processor.image_processor(images=[[picture, Image.new("RGB", (1, 1))]], return_tensors="pt")
        made = {"pixel_values": both["pixel_values"][:1], "image_sizes": both["image_sizes"][:1]}
        one = Shown("image", _flat(made), tuple(self.placeholders("image", made, None)))
        return ShownImage("image", _flat(alone.inputs), alone.ids, one)

    def usual_tokens(self, kind: str, settings: PlanSettings | None) -> int:
        """As in `ModelInputs`; every video has as many."""
        if kind == "image":
            return super().usual_tokens(kind, settings)
        return len(self.frame_numbers(self.usual_frames, None)) * math.ceil(self._side / 2) ** 2 + 1

    def placed(self, segments: list[Segment]) -> list[Segment]:
        """As in `ProcessorInputs`: marks in front of a question stand where the template has a message's images."""
        placed = list(segments)
        for number, segment in enumerate(segments):
            count = 0
            while segment.kind is SegmentKind.QUESTION and segment.text.startswith(DEFAULT_IMAGE_TOKEN * (count + 1)):
                count += 1
            before, instead = self._in_front(count) if count and number else ("", "")
            if not instead or not placed[number - 1].text.endswith(before):
                continue
            written = placed[number - 1].text
            placed[number - 1] = dataclasses.replace(placed[number - 1], text=written[: len(written) - len(before)])
            text = instead + segment.text.removeprefix(DEFAULT_IMAGE_TOKEN * count)
            moved = len(text) - len(segment.text)
            start, end = segment.said
            placed[number] = dataclasses.replace(segment, text=text, said=(start + moved, end + moved))
        return placed

    def _in_front(self, count: int) -> tuple[str, str]:
        """What the template writes between a speaker's name and the text, and what it writes there with some images."""
        text = [{"type": "text", "text": _STAND_IN}]
        without, shown = (
            self._render([{"role": "user", "content": [*media, *text]}], False).partition(_STAND_IN)[0]
            for media in ([], [{"type": "image"}] * count)
        )
        start = shown.find(DEFAULT_IMAGE_TOKEN)
        return (without[start:], shown[start:]) if start >= 0 and without.startswith(shown[:start]) else ("", "")

    def media_arguments(self, media: Sequence[Shown]) -> dict[str, Any]:
        """As in `ProcessorInputs`.

        Raises:
            ValueError: if there are videos of different numbers of frames.
        """
        counts = {shown.inputs["pixel_values_videos"].shape[1] for shown in media if shown.kind == "video"}
        if len(counts) > 1:
            named = " and ".join(map(str, sorted(counts)[:2]))
            raise ValueError(
                f"A batch holds videos of {named} frames, but a llava_onevision takes as many of every video; sample "
                "them with frame_numbers, or ask about one at a time."
            )
        return super().media_arguments(media)

    def sample(self, encoded: EncodedText, media: Sequence[Any]) -> Sample:
        """As in `ProcessorInputs`; several images are shown as one crop each, and the first says how many there are."""
        images = [shown for shown in media if isinstance(shown, ShownImage)]
        if len(images) > 1:
            media = [shown.beside_others if isinstance(shown, ShownImage) else shown for shown in media]
        return super().sample(encoded, _counted(media))

    def cut(self, sample: Sample, max_length: int, settings: PlanSettings | None) -> Sample:
        """As in `ProcessorInputs`. Where one of several images would be left, it is cut off, too: it is one crop."""
        left = super().cut(sample, max_length, settings)
        if left is sample:
            return sample
        several = sum(shown.kind == "image" for shown in sample["images"]) > 1
        kept = [shown.kind for shown in left["images"]]
        if several and kept.count("image") == 1:
            return super().cut(sample, sample["starts"][kept.index("image")], settings)
        return left | {"images": _counted(left["images"])}


def _flat(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Pixels [1, crops, 3, height, width] as [crops, 3, height, width], so that images of any crops can be joined."""
    return {**inputs, "pixel_values": inputs["pixel_values"][0]}


def _counted(media: Sequence[Shown]) -> list[Shown]:
    """The first image says how many there are in the conversation, as the processor's `batch_num_images` does."""
    count, counted = sum(shown.kind == "image" for shown in media), []
    for shown in media:
        inputs = {name: value for name, value in shown.inputs.items() if name != "batch_num_images"}
        if shown.kind == "image" and count:
            inputs["batch_num_images"], count = torch.tensor([count]), 0
        counted.append(dataclasses.replace(shown, inputs=inputs))
    return counted
