"""How many processes load data where nobody says."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from llava.cost.machine import usable_cores

AS_MANY_AS_FIT = -1
"""Value of `--dataloader_num_workers` that leaves the number to `fitting_workers`."""
_MOST = 8  # of one device: `python -m llava.bench.loader` measures that two feed a 7B on the fastest GPU listed


def fitting_workers(
    device: torch.device, cores: int | None = None, environment: Mapping[str, str] | None = None
) -> int:
    """Data-loading processes of each device.

    On an accelerator the cores that a device has for itself, one left to the process that trains, at least one and at
    most eight. On a CPU none: the model takes all cores, and loading beside it would only change places with it.

    Args:
        device: device that trains.
        cores: cores that this process may run on; None asks the system.
        environment: with `LOCAL_WORLD_SIZE`, processes on this machine, as launchers set it; None takes the process's.
    """
    if device.type == "cpu":
        return 0
    held = (os.environ if environment is None else environment).get("LOCAL_WORLD_SIZE", "1")
    processes = int(held) if held.isdigit() else 1
    own = (usable_cores() if cores is None else cores) // max(1, processes)
    return max(1, min(_MOST, own - 1))
