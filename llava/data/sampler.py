"""The order of training samples: a function of seed and epoch alone.

Neither the global random state nor the rank enters, so every rank draws the same order and a resumed run
continues with the order it was interrupted in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """Shuffles, and if asked to puts samples of like kind and length into the same batch.

    Args:
        num_samples: size of the data set.
        seed: of the order; `set_epoch` changes the order from epoch to epoch.
        batch_size: samples of one rank in one forward pass.
        world_size: ranks; consecutive batches go to consecutive ranks.
        accumulation: forward passes of one optimizer step.
        lengths: length of every sample; None shuffles only.
        kinds: samples of different kinds (with and without an image) do not share a batch; None: all are
            alike.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        batch_size: int = 1,
        world_size: int = 1,
        accumulation: int = 1,
        lengths: Sequence[int] | None = None,
        kinds: Sequence[bool] | None = None,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.batch_size = batch_size
        self.world_size = world_size
        self.accumulation = accumulation
        self.lengths = lengths
        self.kinds = kinds
        self.epoch = 0

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
        shuffled = torch.randperm(self.num_samples, generator=generator).tolist()
        if self.lengths is None:
            return shuffled
        kinds = self.kinds or [True] * self.num_samples
        steps, rest = [], []
        for kind in (True, False):
            full, left = self._whole_steps([index for index in shuffled if kinds[index] == kind])
            steps += full
            rest += left
        shuffled_steps = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        leftover_steps = _chunks(rest, self._step_size)
        return [index for step in shuffled_steps + leftover_steps for index in self._arrange(step)]

    @property
    def _step_size(self) -> int:
        return self.batch_size * self.world_size * self.accumulation

    def _whole_steps(self, indices: list[int]) -> tuple[list[list[int]], list[int]]:
        """Cut shuffled indices into optimizer steps; what does not fill one is handed back."""
        steps = _chunks(indices, self._step_size)
        left = steps.pop() if steps and len(steps[-1]) < self._step_size else []
        return steps, left

    def _arrange(self, step: list[int]) -> list[int]:
        """Sort one step so that each forward pass has samples of like length and its ranks have like work."""
        assert self.lengths is not None
        lengths = self.lengths
        by_length = sorted(step, key=lambda index: lengths[index], reverse=True)
        passes = _chunks(by_length, self.batch_size * self.world_size)
        return [index for group in passes for index in self._share_out(group, lengths)]

    def _share_out(self, group: list[int], lengths: Sequence[int]) -> list[int]:
        """Deal samples, longest first, each to the rank with the least work so far that has room."""
        if len(group) < self.batch_size * self.world_size:
            return group
        ranks: list[list[int]] = [[] for _ in range(self.world_size)]
        work = [0] * self.world_size
        for index in group:
            rank = min((r for r in range(self.world_size) if len(ranks[r]) < self.batch_size), key=work.__getitem__)
            ranks[rank].append(index)
            work[rank] += lengths[index]
        return [index for rank in ranks for index in rank]


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
