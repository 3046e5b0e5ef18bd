"""Samples of a run: how many were seen and cut; those that could not be read are named, and fatal above a share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.common.json_lines import append_lines

_ENOUGH = 1000  # before so many samples a share says little


@dataclass
class SampleCounts:
    """Number of samples that this process saw, and how many were truncated, had no label, or could not be read."""

    samples: int = 0
    truncated: int = 0
    unsupervised: int = 0
    skipped: int = 0

    def add(self, truncated: list[bool], unsupervised: list[bool], problems: list[str | None]) -> None:
        """Count one batch. A skipped sample has no labels either, but that is not the data's fault: it counts once."""
        skipped = sum(problem is not None for problem in problems)
        self.samples += len(truncated)
        self.truncated += sum(truncated)
        self.unsupervised += sum(unsupervised) - skipped
        self.skipped += skipped


class SkippedSamples:
    """What one rank skipped, in `skipped_samples-RANK.jsonl` of the output folder.

    Args:
        output_dir: output folder of the run.
        rank: rank of this process.
        samples: size of the data set.
        max_share: largest share of the samples that this rank has seen; above it the run stops.
    """

    def __init__(self, output_dir: str | Path, rank: int, samples: int, max_share: float) -> None:
        self.path = Path(output_dir) / f"skipped_samples-{rank}.jsonl"
        self.max_share = max_share
        self.seen = 0
        self.count = 0
        self._enough = min(_ENOUGH, samples)
        self._named: set[str] = set()

    def add(self, ids: Sequence[str], problems: Sequence[str | None]) -> None:
        """Record the skipped samples of one batch.

        Args:
            ids: ids of its samples.
            problems: what is wrong with each, None where nothing is.

        Raises:
            ValueError: if too many samples were skipped so far.
        """
        self.seen += len(ids)
        for name, problem in zip(ids, problems, strict=bool(problems)):
            if problem is not None:
                self.count += 1
                self._name(name, problem)
        if self.count > self.max_share * max(self.seen, self._enough):
            raise ValueError(
                f"{self.count} of {self.seen} samples could not be read, more than --max_bad_share {self.max_share}; "
                f"they are named in {self.path}. Mend them, clean the data with python -m llava.data.check "
                "--write-clean, or raise the share."
            )

    def _name(self, name: str, problem: str) -> None:
        """Append a sample to the file, once a run."""
        if name in self._named:
            return
        self._named.add(name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            append_lines(file, [{"id": name, "problem": problem}])
