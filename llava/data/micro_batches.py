"""Micro-batches that are filled by tokens: how the samples of an optimizer step are cut into forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava.compression.config import V2VConfig
from llava.constants import IGNORE_INDEX
from llava.data.families.base import ModelInputs
from llava.model.splice import PlanSettings

Step = dict[str, Any]
"""What a loader gives for one optimizer step of one rank: see `StepCollator`."""


def cut_by_tokens(lengths: Sequence[int], most: int, packed: bool = False) -> list[list[int]]:
    """Cut the samples of a step into micro-batches of at most so many tokens; few of them, and always the same.

    Padded rows are put together in the order of their length, which leaves the least padding; packed ones by first fit,
    the longest first. A sample that is longer than `most` has a micro-batch of its own.

    Args:
        lengths: tokens of each sample where they enter the decoder, at least 1.
        most: tokens of a micro-batch, padding included.
        packed: whether rows stand end to end, so that nothing is padded.

    Returns:
        Numbers of the samples of each micro-batch, ascending; the micro-batch with the longest sample comes first.
    """
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    groups: list[list[int]] = []
    room: list[int] = []  # tokens that still go into each group
    for number in longest_first:
        length = lengths[number]
        if packed:
            place = next((place for place, free in enumerate(room) if length <= free), None)
        else:  # every row of a group takes as many positions as its first
            place = len(groups) - 1 if groups and room[-1] >= lengths[groups[-1][0]] else None
        if place is None:
            groups.append([])
            room.append(most)
            place = len(groups) - 1
        groups[place].append(number)
        room[place] -= length if packed else lengths[groups[place][0]]
    return [sorted(group) for group in groups]


@dataclass(frozen=True)
class DecoderLength:
    """Counts the tokens of a sample where it enters the decoder, behind V2V.

    Attributes:
        inputs: `ModelInputs` of the model.
        settings: settings of its plans, which count behind V2V themselves; None where it plans itself.
        v2v: first stage of its compression; None without it.
    """

    inputs: ModelInputs
    settings: PlanSettings | None
    v2v: V2VConfig | None

    def __call__(self, sample: dict[str, Any]) -> int:
        """At least 1; more than there are only where a family cannot say."""
        length = self.inputs.length(sample, self.settings) - self.inputs.merged_away(sample, self.v2v)
        return max(1, length)


@dataclass(frozen=True)
class StepCollator:
    """Makes the micro-batches of one optimizer step of one rank, in a worker.

    Attributes:
        collate: makes a batch of samples.
        length: tokens of a sample where it enters the decoder.
        most: tokens of a micro-batch, see `cut_by_tokens`.
        packed: whether its rows stand end to end.
        spare: whether a step brings a spare micro-batch that teaches nothing, for a rank that has fewer than others.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    length: Callable[[dict[str, Any]], int]
    most: int
    packed: bool = False
    spare: bool = False

    def __call__(self, samples: Sequence[dict[str, Any]]) -> Step:
        """Returns a dict: `batches` (what `collate` makes of each micro-batch), `spare` (the shortest sample without
        its labels as a batch, or None) and `long` (ids and lengths of samples with more than `most` tokens).
        """
        lengths = [self.length(sample) for sample in samples]
        groups = cut_by_tokens(lengths, self.most, self.packed)
        spare = None
        if self.spare:
            shortest = samples[min(range(len(samples)), key=lengths.__getitem__)]
            labels = torch.full_like(shortest["labels"], IGNORE_INDEX)
            spare = self.collate([shortest | {"labels": labels}])
        return {
            "batches": [self.collate([samples[number] for number in group]) for group in groups],
            "spare": spare,
            "long": [
                (sample["sample_id"], length)
                for sample, length in zip(samples, lengths, strict=True)
                if length > self.most
            ],
        }
