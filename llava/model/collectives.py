"""When several processes run one model, all of them must make the same collective calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import distributed, nn


def ranks_must_agree() -> bool:
    """Whether other processes run this model too, so that skipping a module here would leave them waiting."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


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
