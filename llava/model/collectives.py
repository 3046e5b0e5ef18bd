"""Collective calls of processes that run one model together; all of them must make the same calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn


def ranks_must_agree() -> bool:
    """Whether other processes run this model too, so that skipping a module here would leave them waiting."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def require_everywhere(check: Callable[[], object]) -> None:
    """Run a check on every rank, and let it fail on all of them if it fails on one; without a group only here.

    A rank that goes on alone would wait for the others in vain.

    Args:
        check: raises ValueError or OSError; makes no collective call itself.

    Raises:
        ValueError: with the sentence of the first rank that refused, where this one did not.
    """
    problem: ValueError | OSError | None = None
    try:
        check()
    except (ValueError, OSError) as error:
        problem = error
    sentences = of_all_ranks([None if problem is None else str(problem)])
    if problem is not None:
        raise problem
    for rank, sentence in enumerate(sentences):
        if sentence is not None:
            raise ValueError(f"Process {rank} says: {sentence}")


def of_all_ranks(own: Sequence[Any]) -> list[Any]:
    """What all processes have, rank by rank; a collective call that every rank must make.

    Args:
        own: objects of this process, which can be pickled; there may be more or fewer elsewhere.
    """
    if not ranks_must_agree():
        return list(own)
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, list(own))
    return [item for items in gathered for item in items]


class LargestOfRanks:
    """Finds the largest of a number that every rank has, on the host: no device takes part or is waited for.

    Args:
        seconds: how long a rank waits for others.
    """

    def __init__(self, seconds: float = 1800) -> None:
        self._seconds = seconds
        self._group: Any = None

    def of(self, own: int) -> int:
        """The largest; a collective call that every rank must make. Without other ranks the number itself."""
        if not ranks_must_agree():
            return own
        if self._group is None and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(timeout=timedelta(seconds=self._seconds), backend="gloo")
        number = torch.tensor([own])
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
        return int(number)


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 holds this weight in pieces; its own size is 0 then."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of a weight, also of one that ZeRO-3 holds in pieces."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


@contextlib.contextmanager
def gathered(parameters: Iterable[nn.Parameter], changed: bool = False) -> Iterator[None]:
    """Make weights whole while ZeRO-3 holds them in pieces; a collective call that every rank must make.

    Args:
        parameters: the weights.
        changed: they are written to; what rank 0 wrote is then taken over by all.
    """
    pieces = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not pieces:
        yield
        return
    import deepspeed

    options: dict[str, Any] = {"modifier_rank": 0} if changed else {}
    with deepspeed.zero.GatheredParameters(pieces, **options):
        yield


def gather_for_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Make weights whole that ZeRO-3 holds in pieces, until their gradients have been added up.

    For a backward pass that computes their gradients without their module, whose hooks would do it. A collective call
    that every rank must make.
    """
    pieces: list[Any] = [parameter for parameter in parameters if is_partitioned(parameter)]
    if pieces:
        pieces[0].all_gather(param_list=pieces)
    for piece in pieces:
        _partition_behind_gradient(piece)


def _partition_behind_gradient(parameter: Any) -> None:
    def partition(_: Any) -> None:
        handle.remove()
        parameter.partition()

    handle = parameter.register_post_accumulate_grad_hook(partition)
