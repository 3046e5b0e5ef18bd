"""When several processes run one model, all of them must make the same collective calls."""

from __future__ import annotations

from torch import distributed


def ranks_must_agree() -> bool:
    """Whether other processes run this model too, so that skipping a module here would leave them waiting."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
