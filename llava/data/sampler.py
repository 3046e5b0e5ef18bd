"""The order of training samples: a function of seed and epoch alone.

Neither the global random state nor the rank enters, so every rank draws the same order and a resumed run
continues with the order it was interrupted in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

Indices = NDArray[np.int64]


@dataclass(eq=False, repr=False)
class EpochSampler(Sampler[int]):
    """Shuffles, and if asked to puts samples of like kind and length into the same batch.

    Attributes:
        num_samples: size of the data set.
        seed: seed of the order; `set_epoch` changes the order from epoch to epoch.
        batch_size: samples of one rank in one forward pass.
        world_size: ranks; consecutive batches go to consecutive ranks.
        accumulation: forward passes of one optimizer step.
        lengths: length of every sample; None shuffles only.
        kinds: samples of different kinds (with and without an image) do not share a batch; None: all are
            alike.
        epoch: whose order the next iteration follows.
    """

    num_samples: int
    seed: int
    batch_size: int = 1
    world_size: int = 1
    accumulation: int = 1
    lengths: Sequence[int] | NDArray[np.int64] | None = None
    kinds: Sequence[bool] | NDArray[np.bool_] | None = None
    epoch: int = field(default=0, init=False)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        return iter(self.order())

    def order(self) -> list[int]:
        """All indices, once each, in this epoch's order."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
        shuffled = torch.randperm(self.num_samples, generator=generator).numpy()
        if self.lengths is None:
            return shuffled.tolist()
        steps, rest = self._whole_steps(shuffled)
        arranged = self._arrange(steps[torch.randperm(len(steps), generator=generator).numpy()])
        size = self._step_size
        leftovers = [self._arrange_short(rest[start : start + size]) for start in range(0, len(rest), size)]
        return np.concatenate([arranged, *leftovers]).tolist()

    @property
    def _pass_size(self) -> int:
        return self.batch_size * self.world_size

    @property
    def _step_size(self) -> int:
        return self._pass_size * self.accumulation

    def _whole_steps(self, shuffled: Indices) -> tuple[Indices, Indices]:
        """Cut shuffled indices into optimizer steps [S, step] of one kind each, and what does not fill one [R]."""
        of_kind = [shuffled]
        if self.kinds is not None:
            kinds = np.asarray(self.kinds, dtype=bool)[shuffled]
            of_kind = [shuffled[kinds], shuffled[~kinds]]
        ends = [len(indices) - len(indices) % self._step_size for indices in of_kind]
        steps = [indices[:end].reshape(-1, self._step_size) for indices, end in zip(of_kind, ends, strict=True)]
        return np.concatenate(steps), np.concatenate([i[end:] for i, end in zip(of_kind, ends, strict=True)])

    def _arrange(self, steps: Indices) -> Indices:
        """Sort whole steps [S, step] so that each forward pass has samples of like length and its ranks have like
        work; returns their samples in order [S * step].
        """
        lengths = np.asarray(self.lengths, dtype=np.float64)
        longest_first = np.argsort(-lengths[steps], axis=1, kind="stable")
        by_length = np.take_along_axis(steps, longest_first, axis=1)
        return self._share_out(by_length.reshape(-1, self._pass_size), lengths).ravel()

    def _arrange_short(self, indices: Indices) -> Indices:
        """The same for a step that may be short: its last pass may be, and is not shared out."""
        lengths = np.asarray(self.lengths, dtype=np.float64)
        by_length = indices[np.argsort(-lengths[indices], kind="stable")]
        end = len(by_length) - len(by_length) % self._pass_size
        passes = by_length[:end].reshape(-1, self._pass_size)
        return np.concatenate([self._share_out(passes, lengths).ravel(), by_length[end:]])

    def _share_out(self, passes: Indices, lengths: NDArray[Any]) -> Indices:
        """Deal the samples of every pass [P, batch * ranks], longest first, each to the rank with the least work so
        far that has room. Returns passes in which the samples of each rank stand together.
        """
        number = np.arange(len(passes))
        work = np.zeros((len(passes), self.world_size), dtype=np.float64)
        held = np.zeros((len(passes), self.world_size), dtype=np.int64)
        dealt = np.empty_like(passes)
        for sample in passes.T:
            rank = np.where(held < self.batch_size, work, np.inf).argmin(axis=1)
            dealt[number, rank * self.batch_size + held[number, rank]] = sample
            held[number, rank] += 1
            work[number, rank] += lengths[sample]
        return dealt
