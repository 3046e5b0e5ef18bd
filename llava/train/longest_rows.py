"""The longest rows that training data makes, from its texts alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava.constants import IGNORE_INDEX
from llava.data.dataset import LazySupervisedDataset

_LOOKED_AT = 64
"""Samples of each kind that are tokenised, those with most words and media."""


@dataclass(frozen=True)
class LongestRows:
    """Tokens of the longest samples, cut to the model's length.

    Attributes:
        text_alone: tokens of the longest sample without media; 0 without any.
        beside_media: text of the sample with media that is longest.
        visual: its visual tokens in the first decoder layer.
        labels: the most labels of a sample.
    """

    text_alone: int
    beside_media: int
    visual: int
    labels: int

    @classmethod
    def of(cls, dataset: LazySupervisedDataset) -> LongestRows:
        """Look at the samples that are longest by their words and the usual size of their media."""
        lengths, with_media, most = dataset.lengths, dataset.has_image, dataset.config.max_length
        text_alone, beside_media, visual, labels = 0, 0, 0, 0
        for kind in (False, True):
            indices = np.flatnonzero(with_media == kind)
            longest = indices[np.argsort(-lengths[indices], kind="stable")[:_LOOKED_AT]]
            for index in map(int, longest):
                encoded = dataset.encode(index)
                whole = dataset.expected_length(index, encoded)
                text = sum(token >= 0 for token in encoded.input_ids)
                labels = max(labels, sum(label != IGNORE_INDEX for label in encoded.labels))
                if not kind:
                    text_alone = max(text_alone, min(whole, most))
                elif min(whole, most) > beside_media + visual:
                    visual = min(whole - text, most)
                    beside_media = min(whole, most) - visual
        return cls(text_alone, beside_media, visual, min(labels, most))
