"""Collator of training samples: pads them to a batch and plans where visual tokens go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from llava.constants import IGNORE_INDEX
from llava.model.splice import PlanSettings


def stacked(images: Sequence[Any]) -> dict[str, Any]:
    """Images [3, H, W] of one size as the argument `images` [M, 3, H, W]; in a data worker, in shared memory."""
    return {"images": default_collate(list(images))}


REPORTED = ("sample_ids", "truncated", "unsupervised", "problems", "tower_tokens")
"""What collators give beside the arguments of the model, for reports; those of a family need not give all."""


def reported(samples: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """`sample_ids`, `truncated`, `unsupervised` and `problems` of some samples: lists [B].

    Unsupervised are those without a label; a problem is None, or why a medium was left out.
    """
    return {
        "sample_ids": [sample["sample_id"] for sample in samples],
        "truncated": [sample["truncated"] for sample in samples],
        "unsupervised": [not (sample["labels"][1:] != IGNORE_INDEX).any().item() for sample in samples],
        "problems": [sample.get("problem") for sample in samples],
    }


def _one_image(medium: Any) -> Sequence[int | None]:
    return [None]


@dataclass(frozen=True)
class SupervisedCollator:
    """Pads samples on the right.

    Attributes:
        pad_token_id: filler of `input_ids`; it is masked, so its value does not matter to the model.
        image_size: side of the images that the tower takes; None in a run without images. A batch of text
            alone then brings one image of zeros, so that the tower and the projector run on every rank in
            every step.
        settings: settings of the model's plans; None leaves planning to the model, which waits for its device then.
        media_arguments: from the media of a batch, in reading order, to arguments of the model.
        tower_tokens: tower tokens of a medium, see `ModelInputs.tower_tokens`.
    """

    pad_token_id: int
    image_size: int | None = None
    settings: PlanSettings | None = None
    media_arguments: Callable[[Sequence[Any]], dict[str, Any]] = stacked
    tower_tokens: Callable[[Any], Sequence[int | None]] = _one_image

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns a dict: `input_ids`, `labels`, `query_mask` (int64 [B, T]), `attention_mask` (bool [B, T]),
        what the media become (`images` [M, 3, H, W] for M images in reading order), with settings `plan` (a
        `SplicePlan`), and for reports what `reported` gives and `tower_tokens` (of each image, crop and frame).
        """
        lengths = torch.tensor([len(sample["input_ids"]) for sample in samples])
        batch: dict[str, Any] = {
            "input_ids": _pad(samples, "input_ids", self.pad_token_id),
            "labels": _pad(samples, "labels", IGNORE_INDEX),
            "query_mask": _pad(samples, "query_mask", 0),
            "attention_mask": torch.arange(int(lengths.max())) < lengths[:, None],
            **reported(samples),
        }
        media = [medium for sample in samples for medium in sample["images"]]
        batch["tower_tokens"] = [count for medium in media for count in self.tower_tokens(medium)]
        if media:
            batch |= self.media_arguments(media)
        elif self.image_size is not None:
            batch["images"] = torch.zeros(1, 3, self.image_size, self.image_size)
        if self.settings is not None:
            batch["plan"] = self.settings.plan(batch, media)
        return batch


def _pad(samples: Sequence[dict[str, Any]], name: str, value: int) -> torch.Tensor:
    return pad_sequence([sample[name] for sample in samples], batch_first=True, padding_value=value)
