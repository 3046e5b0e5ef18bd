"""Collator of samples whose text holds a placeholder for each visual token, as processors of transformers write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX
from llava.data.collator import reported
from llava.model.host_inputs import HostInputs


def _nothing(medium: Any) -> Sequence[int | None]:
    return ()


@dataclass(frozen=True)
class ProcessorCollator:
    """Pads samples to a batch; positions and the places of visual tokens are left to the model.

    Attributes:
        pad_token_id: filler of `input_ids`; it is masked.
        placeholder_ids: ids of a visual token of an image, and of one of a video.
        media_arguments: from the media of a batch, in reading order, to arguments of the model.
        tower_tokens: tower tokens of a medium, see `ModelInputs.tower_tokens`.
        blank: an image that a batch of text alone brings, so that the tower runs on every rank in every step; its
            features go nowhere. None brings nothing.
        side: where padding goes, `right` or `left`.
        with_kinds: whether the model takes `mm_token_type_ids`.
    """

    pad_token_id: int
    placeholder_ids: tuple[int, int]
    media_arguments: Callable[[Sequence[Any]], dict[str, Any]]
    tower_tokens: Callable[[Any], Sequence[int | None]] = _nothing
    blank: Any = None
    side: str = "right"
    with_kinds: bool = True

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns a dict: `input_ids`, `labels`, `query_mask`, `attention_mask`, `mm_token_type_ids` (int64 [B, T]; the
        last is 1 on images and 2 on videos), what the media become, and for reports what `reported` gives and
        `tower_tokens` (a list of numbers); `host_inputs` keeps a copy of what the model plans by on the host.
        """
        ids = self._pad(samples, "input_ids", self.pad_token_id)
        mask = self._rows([torch.ones_like(sample["input_ids"]) for sample in samples], 0)
        image, video = self.placeholder_ids
        batch: dict[str, Any] = {
            "input_ids": ids,
            "labels": self._pad(samples, "labels", IGNORE_INDEX),
            "query_mask": self._pad(samples, "query_mask", 0),
            "attention_mask": mask,
            **reported(samples),
        }
        if self.with_kinds:
            batch["mm_token_type_ids"] = ((ids == image).long() + 2 * (ids == video).long()) * mask
        media = [medium for sample in samples for medium in sample["images"]]
        batch["tower_tokens"] = [count for medium in media for count in self.tower_tokens(medium)]
        if not media and self.blank is not None:
            media = [self.blank]
        batch |= self.media_arguments(media)
        return batch | {"host_inputs": HostInputs.of(batch)}

    def _pad(self, samples: Sequence[dict[str, Any]], name: str, value: int) -> Tensor:
        return self._rows([sample[name] for sample in samples], value)

    def _rows(self, rows: Sequence[Tensor], value: int) -> Tensor:
        """Rows [T'] as [B, T]."""
        return torch.nn.utils.rnn.pad_sequence(list(rows), True, value, self.side)
