"""The training data set: LLaVA records, tokenised and opened when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava.compression.salience import SalientFinder, salient_spans
from llava.conversation import get_template
from llava.data.images import BadImageError, image_path, open_rgb
from llava.data.records import Record, read_records, wrap_image_marks
from llava.data.tokenization import EncodedText, encode_conversation, truncate
from llava.mm_utils import preprocess_image


@dataclass(frozen=True)
class DataConfig:
    """How records become samples.

    Attributes:
        template: key of `conv_templates`.
        max_length: tokens the model takes, images expanded.
        visual_tokens: tokens that one image becomes on its way into the decoder.
        image_folder: where image names start.
        image_aspect_ratio: `pad` or `square`.
        use_im_start_end: surround images with the tokens `<im_start>` and `<im_end>`.
        find_salient: says which words of a question are salient.
    """

    template: str
    max_length: int
    visual_tokens: int
    image_folder: str | Path = "."
    image_aspect_ratio: str = "square"
    use_im_start_end: bool = False
    find_salient: SalientFinder = salient_spans


class LazySupervisedDataset(Dataset):
    """LLaVA records as training samples.

    A sample is a dict: `input_ids`, `labels`, `query_mask` (int64 [T]), `images` (list of [3, H, W] in the order of
    their marks; empty for text), `sample_id` and `truncated`.

    Args:
        records: the conversations, or the path of a JSON or JSONL file of them.
        tokenizer: a fast tokenizer.
        image_processor: of the vision tower; None for a run without images.
        config: how to encode.
    """

    def __init__(
        self,
        records: Sequence[Record] | str | Path,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any | None,
        config: DataConfig,
    ) -> None:
        self.records = read_records(records) if isinstance(records, str | Path) else records
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self._image_tags = "mmtag" in get_template(config.template).version
        if image_processor is None and any(record.images for record in self.records):
            raise ValueError("The data holds images, but the model has no vision tower; give --vision_tower.")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        encoded = self.encode(index)
        images = [self._pixels(name, record) for name in record.images[: encoded.num_images]]
        return {**encoded.tensors(), "images": images, "sample_id": record.id, "truncated": encoded.truncated}

    def encode(self, index: int) -> EncodedText:
        """The text of one sample, cut to the model's length; no image is opened."""
        record, config = self.records[index], self.config
        turns: Sequence[str] = record.turns
        if record.images:
            turns = [wrap_image_marks(turn, config.use_im_start_end, self._image_tags) for turn in turns]
        try:
            encoded = encode_conversation(
                turns, self.tokenizer, config.template, bool(record.images), config.find_salient
            )
        except ValueError as error:
            raise ValueError(f"record {record.id!r}: {error}") from error
        return truncate(encoded, config.max_length, config.visual_tokens)

    @property
    def lengths(self) -> list[int]:
        """Rough length of every sample in tokens: words of text and the tokens of its images."""
        visual = self.config.visual_tokens
        return [record.num_words + visual * len(record.images) for record in self.records]

    @property
    def has_image(self) -> list[bool]:
        """Which samples show an image."""
        return [bool(record.images) for record in self.records]

    def _pixels(self, name: str, record: Record) -> torch.Tensor:
        try:
            image = open_rgb(image_path(self.config.image_folder, name))
        except BadImageError as error:
            raise BadImageError(f"record {record.id!r}: {error}") from error
        return preprocess_image(image, self.image_processor, self.config.image_aspect_ratio)
