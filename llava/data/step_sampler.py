"""Deals the samples of each optimizer step to the ranks, so that these have like work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class Order(Iterable[int], Sized, Protocol):
    """A sampler that knows how many samples it gives."""


@dataclass(eq=False, repr=False)
class StepSampler(Sampler[list[int]]):
    """The samples of this rank, an optimizer step at a time.

    The steps hold the samples that they have where each rank takes batches of one size: in the order of the sampler,
    and at the end, with several ranks, filled up from its beginning (as accelerate's `BatchSamplerShard` does it). Only
    who takes which of them is another: longest first, each to the rank with the fewest tokens so far. All ranks compute
    the same from the same order, so nothing is sent between them.

    Attributes:
        order: gives the samples of an epoch, all ranks' together, anew for each iteration.
        batch_size: samples of one rank in one forward pass of the recipe.
        accumulation: forward passes of one of its steps.
        world_size, rank: number of ranks, and which one this is.
        lengths: rough tokens of every sample; None takes all for equally long.
        drop_last: whether batches are left out that are not whole, or that not every rank has.
    """

    order: Order
    batch_size: int
    accumulation: int = 1
    world_size: int = 1
    rank: int = 0
    lengths: Sequence[int] | NDArray[Any] | None = None
    drop_last: bool = False

    def __len__(self) -> int:
        """Steps of an epoch."""
        return -(-self._passes // self.accumulation)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            yield self.share(step)

    @property
    def _pass_size(self) -> int:
        """Samples of one forward pass of all ranks."""
        return self.batch_size * self.world_size

    @property
    def _passes(self) -> int:
        whole, rest = divmod(len(self.order), self._pass_size)
        return whole + (rest > 0 and not self.drop_last)

    def steps(self) -> Iterator[list[int]]:
        """The samples of each step, all ranks' together, in the sampler's order."""
        indices = list(self.order)
        count = self._passes * self._pass_size
        if self.world_size == 1:
            count = min(count, len(indices))  # one rank alone ends with a short batch
        elif count > len(indices) > 0:
            indices += [indices[number % len(indices)] for number in range(count - len(indices))]
        size = self._pass_size * self.accumulation
        for start in range(0, count, size):
            yield indices[start : min(start + size, count)]

    def share(self, step: Sequence[int]) -> list[int]:
        """What this rank takes of the samples of a step, in their order; every rank has at least one."""
        if self.world_size == 1:
            return list(step)
        lengths = np.ones(len(step)) if self.lengths is None else np.asarray(self.lengths)[np.asarray(step)]
        work = np.zeros(self.world_size)
        own = []
        for place in np.argsort(-lengths, kind="stable").tolist():
            rank = int(work.argmin())
            work[rank] += max(1, lengths[place])
            if rank == self.rank:
                own.append(place)
        return [step[place] for place in sorted(own)]
