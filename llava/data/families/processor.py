"""Families whose inputs a processor of transformers makes: its own chat template, its image and its video processor.

In the text an image or video stands as one `IMAGE_TOKEN_INDEX` until its size is known; `sample` puts in its place what
the processor would write there, as many placeholders as it has visual tokens without compression. A family names its
arguments and says what stands in the place of a medium (`placeholders`).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.compression.salience import salient_spans
from llava.constants import (
    DEFAULT_IMAGE_TOKEN,
    DEFAULT_VIDEO_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
    LITERAL_IMAGE_TOKEN,
    LITERAL_VIDEO_TOKEN,
    WRITTEN_IMAGE_TOKEN,
    WRITTEN_VIDEO_TOKEN,
)
from llava.conversation import Segment
from llava.data.chat_template import Message, template_segments
from llava.data.families.base import USUAL_SIZE, ModelInputs, Sample
from llava.data.frames import Frames
from llava.data.images import BadImageError, within_limits
from llava.data.processor_collator import ProcessorCollator
from llava.data.salient import SalientFinder
from llava.data.tokenization import EncodedText, encode_segments, shortened
from llava.model.splice import PlanSettings

OWN_TEMPLATE = "chat_template"
"""Name of the only template that such models are asked in: the one beside their weights."""
TEXT_ARGUMENTS = ("input_ids", "attention_mask", "query_mask", "labels", "mm_token_type_ids")
_MARK = re.compile(f"{DEFAULT_IMAGE_TOKEN}|{DEFAULT_VIDEO_TOKEN}")
_AROUND_MARK = re.compile(rf"\s*{DEFAULT_IMAGE_TOKEN}\s*")


@dataclass(frozen=True)
class Shown:
    """An image or a video as the processor made it.

    Attributes:
        kind: `image` or `video`.
        inputs: arguments of the model that describe it alone, by name, such as `pixel_values` [P, d].
        ids: what takes the place of its mark in the text.
    """

    kind: str
    inputs: Mapping[str, Any]
    ids: tuple[int, ...]


class ProcessorInputs(ModelInputs):
    """Inputs of a model that has a processor with an `image_processor`, and perhaps a `video_processor`.

    Attributes:
        image_inputs, video_inputs: arguments of the model that describe images, and videos.
    """

    counted_frames = False
    image_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)

    @classmethod
    def template_for(cls, config: Any, model_name: str, asked: str | None = None, usual: str | None = None) -> str:
        """The model's own; what is usual for other families is passed over.

        Raises:
            ValueError: if another was asked for.
        """
        if asked not in (None, OWN_TEMPLATE):
            raise ValueError(
                f"The conversation template {asked!r} was asked for, but a {config.model_type} is asked in the chat "
                "template of its own processor; leave --conv-mode out."
            )
        return OWN_TEMPLATE

    @property
    def stop(self) -> str | None:
        """As in `ModelInputs`."""
        *_, end = self.segments(["", ""], None, False)
        mark = end.text.strip()
        return None if mark in ("", self.tokenizer.eos_token) else mark

    @property
    def limit(self) -> int:
        """As in `ModelInputs`."""
        return int(self.config.get_text_config().max_position_embeddings)

    @abstractmethod
    def placeholders(self, kind: str, made: Mapping[str, Any], frames: Frames | None) -> list[int]:
        """What takes the place of a mark in the text, as the processor writes it.

        Args:
            kind: `image` or `video`.
            made: what the image or video processor returned for it alone.
            frames: frames of a video.
        """

    @property
    @abstractmethod
    def placeholder_ids(self) -> tuple[int, int]:
        """The ids that a visual token of an image, and one of a video, has in the text."""

    def image(self, picture: Image.Image, what: str) -> Shown:
        """As in `ModelInputs`."""
        if self.processor is None:
            raise ValueError("The model's processor could not be made, so images cannot be shown; see the warning.")
        with within_limits(what):
            try:
                made = self.processor.image_processor(images=[picture], return_tensors="pt")
            except ValueError as error:
                size = "x".join(map(str, picture.size))
                raise BadImageError(f"{what} is {size}, which the model's processor refuses: {error}.") from error
        inputs = {name: made[name] for name in self.image_inputs if name in made}
        return Shown("image", inputs, tuple(self.placeholders("image", made, None)))

    def video(self, frames: Frames, what: str) -> list[Shown]:
        """As in `ModelInputs`; one medium."""
        made = self.made_video(frames, what)
        inputs = {name: made[name] for name in self.video_inputs if name in made}
        return [Shown("video", inputs, tuple(self.placeholders("video", made, frames)))]

    def made_video(self, frames: Frames, what: str) -> dict[str, Any]:
        """What the video processor returns for the frames of a video, and under `video_metadata` what it knows of it.

        Raises:
            BadImageError: if the frames are of different sizes, or the processor refuses them.
        """
        from transformers.video_utils import VideoMetadata

        processor = self.video_processor()
        sizes = {picture.size for picture in frames}
        if len(sizes) > 1:
            named = ", ".join("x".join(map(str, size)) for size in sorted(sizes)[:2])
            raise BadImageError(f"{what} has frames of different sizes ({named}); make them of one size.")
        ((width, height),) = sizes
        metadata = VideoMetadata(
            total_num_frames=frames.total,
            fps=frames.fps,
            width=width,
            height=height,
            duration=None if frames.fps is None else frames.total / frames.fps,
            frames_indices=list(frames.numbers),
        )
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in frames])).permute(0, 3, 1, 2)
        try:
            made = processor(
                videos=[pixels],  # [T, 3, height, width]
                video_metadata=[metadata],
                do_sample_frames=False,
                input_data_format="channels_first",
                return_tensors="pt",
            )
        except ValueError as error:
            raise BadImageError(f"{what} is {width}x{height}, which the model's processor refuses: {error}.") from error
        return {**made, "video_metadata": metadata}

    def video_processor(self) -> Any:
        """The processor of videos.

        Raises:
            ValueError: if there is none.
        """
        processor = getattr(self.processor, "video_processor", None)
        if processor is None:
            raise ValueError(
                f"Videos cannot be shown to this {self.config.model_type}: transformers' processor of videos needs "
                "torchvision, which is not installed (choose the one made for your torch), or the model has none."
            )
        return processor

    @property
    def trains_on_videos(self) -> bool:
        """As in `ModelInputs`."""
        return self.video_processor() is not None

    def blank(self, kind: str) -> Shown:
        """As in `ModelInputs`; black."""
        shown: Shown = super().blank(kind)
        return shown

    def question(self, text: str, media: Sequence[Any]) -> str:
        """As in `ModelInputs`; marks are `<image>` and `<video>`, by default all in front."""
        text = text.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN).replace(WRITTEN_VIDEO_TOKEN, LITERAL_VIDEO_TOKEN)
        written, kinds = [mark[1:-1] for mark in _MARK.findall(text)], [medium.kind for medium in media]
        if written and written != kinds:
            raise ValueError(
                f"The question holds the marks {', '.join(written)}, but {', '.join(kinds) or 'nothing'} is shown; "
                f"write one for each, in their order, or none to have them in front. {WRITTEN_IMAGE_TOKEN} and "
                f"{WRITTEN_VIDEO_TOKEN} are the words themselves."
            )
        if not written:
            text = DEFAULT_IMAGE_TOKEN * len(kinds) + text
        return self.marked(text).replace(LITERAL_VIDEO_TOKEN, DEFAULT_VIDEO_TOKEN)

    def written_mark(self, media: Sequence[Any]) -> str:
        """As in `ModelInputs`."""
        return "".join(DEFAULT_VIDEO_TOKEN if medium.kind == "video" else DEFAULT_IMAGE_TOKEN for medium in media)

    def marked(self, turn: str) -> str:
        """As in `ModelInputs`; a video's mark becomes one like an image's, for what is shown says which it is."""
        return turn.replace(DEFAULT_VIDEO_TOKEN, DEFAULT_IMAGE_TOKEN)

    def encoding_facts(self) -> list[str]:
        """As in `ModelInputs`."""
        return [*super().encoding_facts(), self._template()]

    def encode(
        self,
        turns: Sequence[str],
        with_media: bool,
        find_salient: SalientFinder = salient_spans,
        system: str | None = None,
        ask: bool = False,
    ) -> EncodedText:
        """As in `ModelInputs`. Blanks and line breaks around a mark are left out, as in Qwen's own training code.

        Labels are those of an answer and of all that the template writes behind it up to the next turn.
        """
        if with_media:
            turns = [turn if number % 2 else self.around_marks(turn) for number, turn in enumerate(turns)]
        segments = self.segments(turns, system, ask)
        if with_media:
            segments = self.placed(segments)
        bos = self.tokenizer.bos_token
        with_bos = not (bos and segments[0].text.startswith(bos))
        return encode_segments(segments, self.tokenizer, with_media, find_salient, ask, with_bos, keeps_breaks=True)

    def written(self, turns: Sequence[str]) -> str:
        """As in `ModelInputs`."""
        return "".join(segment.text for segment in self.segments(turns, None, True))

    def around_marks(self, turn: str) -> str:
        """A human turn without the blanks around its marks."""
        return _AROUND_MARK.sub(DEFAULT_IMAGE_TOKEN, turn)

    def placed(self, segments: list[Segment]) -> list[Segment]:
        """Segments of a conversation with media, marks where the model's template has them; here as they are."""
        return segments

    def segments(self, turns: Sequence[str], system: str | None, ask: bool) -> list[Segment]:
        """A conversation cut into segments by the chat template; see `llava.data.chat_template`."""
        return template_segments(self._render, turns, system, ask)

    def _render(self, messages: list[Message], ask: bool) -> str:
        written = self.tokenizer.apply_chat_template(
            messages, chat_template=self._template(), tokenize=False, add_generation_prompt=ask
        )
        return str(written)

    def _template(self) -> str:
        for holder in (self.processor, self.tokenizer):
            template = getattr(holder, "chat_template", None)
            if isinstance(template, Mapping):
                template = template.get("default")
            if template:
                return str(template)
        raise ValueError(
            f"This {self.config.model_type} has no chat template; put the chat_template.jinja or chat_template.json of "
            "its publisher beside its weights."
        )

    def sample(self, encoded: EncodedText, media: Sequence[Any]) -> Sample:
        """As in `ModelInputs`; `starts` says where in the ids the place of each medium begins."""
        columns: tuple[list[int], list[int], list[int]] = ([], [], [])
        left, starts = iter(media), []
        for token, *row in zip(encoded.input_ids, encoded.labels, encoded.query_mask, strict=True):
            if token != IMAGE_TOKEN_INDEX:
                for column, value in zip(columns, (token, *row), strict=True):
                    column.append(value)
                continue
            shown = next(left, None)
            if shown is None:
                raise ValueError(f"The text has {encoded.num_images} marks, but {len(media)} images and videos came.")
            starts.append(len(columns[0]))
            for column, values in zip(columns, (shown.ids, [IGNORE_INDEX], [0]), strict=True):
                column += values if values is shown.ids else list(values) * len(shown.ids)
        if len(starts) != len(media):
            raise ValueError(f"The text has {len(starts)} marks, but {len(media)} images and videos came.")
        whole = EncodedText(*columns, truncated=encoded.truncated)
        return super().sample(whole, media) | {"starts": starts}

    def visual_tokens(self, sample: Sample, settings: PlanSettings | None) -> int:
        """As in `ModelInputs`; without settings those that there are before any is merged."""
        if settings is not None:
            return super().visual_tokens(sample, settings)
        ids: Tensor = sample["input_ids"]
        return int(torch.isin(ids, torch.tensor(self.placeholder_ids)).sum())

    def length(self, sample: Sample, settings: PlanSettings | None) -> int:
        """As in `ModelInputs`; without settings before any visual token is merged."""
        text = len(sample["input_ids"]) - self.visual_tokens(sample, None)
        return text + self.visual_tokens(sample, settings)

    def usual_tokens(self, kind: str, settings: PlanSettings | None) -> int:
        """As in `ModelInputs`: of a picture of 640 x 480, for each pair of frames of a video."""
        shown = self.image(Image.new("RGB", USUAL_SIZE), "An image")
        each = len(shown.ids) if settings is None else sum(self.tokens(shown, settings))
        return each * (1 if kind == "image" else self.usual_frames // 2)

    def cut(self, sample: Sample, max_length: int, settings: PlanSettings | None) -> Sample:
        """As in `ModelInputs`; lengths are counted before visual tokens are merged, as in Qwen's own training code."""
        ids: Tensor = sample["input_ids"]
        if len(ids) <= max_length:
            return sample
        ends = [start + len(shown.ids) for start, shown in zip(sample["starts"], sample["images"], strict=True)]
        whole = sum(end <= max_length for end in ends)
        kept = min([max_length, *sample["starts"][whole:]])
        return shortened(sample, kept, whole) | {"starts": sample["starts"][:whole]}

    def tower_tokens(self, medium: Shown) -> list[int]:
        """As in `ModelInputs`: the patches of each frame."""
        grids = (medium.inputs.get(name) for name in ("image_grid_thw", "video_grid_thw"))
        found = [grid.tolist() for grid in grids if grid is not None]
        return [height * width for grid in found for time, height, width in grid for _ in range(time)]

    def media_arguments(self, media: Sequence[Shown]) -> dict[str, Any]:
        """Arguments of the model for the media of a batch, in reading order."""
        made: dict[str, Any] = {}
        for name in (*self.image_inputs, *self.video_inputs):
            parts = [shown.inputs[name] for shown in media if name in shown.inputs]
            if parts:
                made[name] = torch.cat(parts)
        return made

    def collator(self, image_size: int | None = None, settings: PlanSettings | None = None) -> ProcessorCollator:
        """As in `ModelInputs`; padded on the right. A batch of text alone brings a black image."""
        blank = None if image_size is None else self.blank("image")
        return self._collator(blank, "right")

    def batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As in `ModelInputs`; padded on the left, for answers to follow."""
        collated = self._collator(None, "left")(samples)
        return {name: collated[name] for name in self.arguments if name in collated}

    def _collator(self, blank: Shown | None, side: str) -> ProcessorCollator:
        return ProcessorCollator(
            self.tokenizer.pad_token_id or 0,
            self.placeholder_ids,
            self.media_arguments,
            self.tower_tokens,
            blank,
            side,
            "mm_token_type_ids" in self.arguments,
        )
