"""Looks at the losses and the gradient of a step once the next one is under way, so that none waits for its device.

A number that a device computes is known to the host only when the device gets there. Reading it at once leaves the
device without work while the host prepares the next kernels, so the numbers of a step travel to the host on their own
and are read in front of the next optimizer step, or earlier where something is to be logged, evaluated or saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.collectives import of_all_ranks, ranks_must_agree
from llava.train.non_finite import loss_fault, require_finite_gradient, trained_weights

_WEIGHTS, _NUMBERS = 32, 64
"""Weights that are sampled before each step, and how many numbers of each."""


@dataclass(frozen=True)
class HostCopy:
    """Numbers on their way from a device to the host.

    Attributes:
        values: float32 [n] on the host; not to be read before `arrived`.
        arrived: what to wait for; None where they are there already.
    """

    values: Tensor
    arrived: torch.Event | None

    @classmethod
    def of(cls, numbers: Sequence[Tensor]) -> HostCopy:
        """Start the copy of scalars and vectors of one device, laid end to end; does not wait for it."""
        device = numbers[0].device
        joined = torch.cat([number.detach().float().flatten().to(device, non_blocking=True) for number in numbers])
        on_host = joined.to("cpu", non_blocking=device.type != "cpu")  # into page-locked memory
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is None or device.type != accelerator.type:
            return cls(on_host, None)
        arrived = torch.Event(device)
        arrived.record()
        return cls(on_host, arrived)

    def read(self) -> list[float]:
        """The numbers; waits for the device if it has not come that far."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return [float(value) for value in self.values.tolist()]


@dataclass(frozen=True)
class _Step:
    """An optimizer step that nobody has looked at."""

    number: int
    ids: tuple[tuple[str, ...], ...]  # of each forward pass
    sampled: tuple[str, ...]  # names of the weights that were sampled before it
    numbers: HostCopy
    norm: Any  # where the host knows it; a tensor stands at the end of the numbers
    scaled: bool
    scale: float | None


class FiniteSteps:
    """Stops a run on a loss or a gradient that is not finite, one step late, and before it reaches a checkpoint.

    All ranks make the same calls; a loss that is not finite on one of them stops all.

    Args:
        model: that is trained.
        resumable: whether there is a checkpoint that a run goes on from.
    """

    def __init__(self, model: nn.Module, resumable: Callable[[], bool]) -> None:
        self._model = model
        self._resumable = resumable
        self._losses: list[Tensor] = []
        self._ids: list[tuple[str, ...]] = []
        self._sampled: Mapping[str, Tensor] = {}
        self._noted: _Step | None = None

    def add_loss(self, loss: Tensor, ids: Sequence[str]) -> None:
        """Take note of a forward pass of the step under way: its loss, and the ids of its samples."""
        if not self._losses:
            self._sampled = _sampled_magnitudes(self._model)
        self._losses.append(loss.detach())
        self._ids.append(tuple(ids))

    def end_step(self, norm: Any, number: int, scaled: bool = False, scale: float | None = None) -> None:
        """Right before an optimizer step: look at the one before, and take note of this one.

        Args:
            norm, scaled, scale: as in `require_finite_gradient`; a tensor is not looked at now.
            number: of the step, counting from 1.

        Raises:
            FloatingPointError: as `look`.
        """
        self.look()
        if not self._losses:
            return
        device = self._losses[0].device
        losses = torch.stack([loss.float() for loss in self._losses])
        broken = (~losses.isfinite()).sum()
        if ranks_must_agree():
            torch.distributed.all_reduce(broken)
        numbers = [losses, *(value.to(device, non_blocking=True) for value in self._sampled.values()), broken]
        if isinstance(norm, Tensor):
            numbers, norm = [*numbers, _whole(norm)], None
        copied = HostCopy.of(numbers)
        self._noted = _Step(number, tuple(self._ids), tuple(self._sampled), copied, norm, scaled, scale)
        self._losses, self._ids, self._sampled = [], [], {}

    def look(self) -> None:
        """Read what was noted last; call it before anything is logged, evaluated or saved.

        Raises:
            FloatingPointError: at every rank, if a loss or the gradient of that step is not finite; names the step and
                the samples.
        """
        step, self._noted = self._noted, None
        if step is None:
            return
        read = step.numbers.read()
        losses, rest = read[: len(step.ids)], read[len(step.ids) :]
        sampled = dict(zip(step.sampled, rest, strict=False))
        broken, *norm = rest[len(sampled) :]
        if broken:
            passes = zip(losses, step.ids, strict=True)
            found = [(loss, ids) for loss, ids in passes if not math.isfinite(loss)][:1]
            own = [loss_fault(loss, step.number, ids, self._model, sampled) for loss, ids in found]
            raise FloatingPointError(of_all_ranks(own)[0])
        ids = [name for one in step.ids for name in one]
        shown = norm[0] if norm else step.norm
        require_finite_gradient(shown, step.number, ids, step.scaled, step.scale, self._resumable())


def _sampled_magnitudes(model: nn.Module) -> dict[str, Tensor]:
    """The largest magnitude among the first numbers of some trained weights, float32 scalars by name; NaN if one is.

    They tell, once a loss is not finite, whether the steps before had ruined the weights.
    """
    weights = [(name, weight.detach()) for name, weight in trained_weights(model) if weight.numel()]
    chosen = weights[:: max(1, len(weights) // _WEIGHTS)]
    return {
        name: torch.linalg.vector_norm(weight.flatten()[:_NUMBERS], torch.inf, dtype=torch.float32)
        for name, weight in chosen
    }


def _whole(norm: Tensor) -> Tensor:
    """A norm that is spread over devices as one number; with the others, where weights are."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
