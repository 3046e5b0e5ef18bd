"""Statistics of the first samples of a run: lengths, labels, voters, padding; measured before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from llava.constants import IGNORE_INDEX
from llava.data.dataset import LazySupervisedDataset

SAMPLES_TO_CHECK = 1000
MAX_UNSUPERVISED_SHARE = 0.01


@dataclass(frozen=True)
class DataStatistics:
    """Means over some samples.

    Attributes:
        samples: how many were looked at.
        mean_text_tokens: tokens of a sample without its images.
        mean_sequence_tokens: tokens of a sample as it enters the decoder.
        padding_share: share of the positions of padded batches that is filler.
        truncated: samples cut to the model's length.
        unsupervised: samples in which no label is left: they teach nothing.
        unsupervised_ids: some of them, by id.
    """

    samples: int
    mean_text_tokens: float
    mean_sequence_tokens: float
    padding_share: float
    truncated: int
    unsupervised: int
    unsupervised_ids: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    def require_supervision(self) -> None:
        """Refuse data of which many samples have no label.

        Raises:
            ValueError: if more than 1 % of the samples have no label.
        """
        if self.unsupervised > MAX_UNSUPERVISED_SHARE * self.samples:
            shown = ", ".join(map(repr, self.unsupervised_ids))
            raise ValueError(
                f"{self.unsupervised} of the first {self.samples} samples have no label at all, more than "
                f"{MAX_UNSUPERVISED_SHARE:.0%} (ids {shown}, ...): their answers are empty or lie beyond "
                "--model_max_length. Raise it, choose another --version, or clean the data."
            )


def measure(dataset: LazySupervisedDataset, order: Sequence[int], batch_size: int) -> DataStatistics:
    """Tokenise the first samples of a run; no image is opened, so those that differ count as usual ones.

    Args:
        dataset: the training data.
        order: its indices in the order of training; at most SAMPLES_TO_CHECK of them are looked at.
        batch_size: samples that are padded together.
    """
    indices = order[:SAMPLES_TO_CHECK]
    texts, sequences, truncated, empty = [], [], 0, []
    for index in indices:
        encoded = dataset.encode(index)
        texts.append(len(encoded.input_ids) - encoded.num_images)
        length = dataset.expected_length(index, encoded)
        sequences.append(min(length, dataset.config.max_length))
        truncated += encoded.truncated or length > dataset.config.max_length
        # What stands behind so many ids is cut in any case; where images differ, more may be when they have been read.
        if all(label == IGNORE_INDEX for label in encoded.labels[1 : dataset.config.max_length]):
            empty.append(dataset.records[index].id)
    batches = [sequences[start : start + batch_size] for start in range(0, len(sequences), batch_size)]
    positions = sum(max(batch) * len(batch) for batch in batches)
    count = max(len(indices), 1)
    return DataStatistics(
        samples=len(indices),
        mean_text_tokens=sum(texts) / count,
        mean_sequence_tokens=sum(sequences) / count,
        padding_share=1 - sum(sequences) / max(positions, 1),
        truncated=truncated,
        unsupervised=len(empty),
        unsupervised_ids=empty[:5],
    )
