"""Timing of several variants in interleaved rounds after a warm-up, with the device synchronised."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each call of each variant; one warm-up each, then all variants in turn, `repeats` rounds."""
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            seconds[name].append(timed(run, device))
    return seconds


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the device idle before it and waited for behind it."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Block until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(seconds: list[float]) -> str:
    """Median and range, in milliseconds."""
    return f"{median(seconds) * 1e3:9.1f} ms ({min(seconds) * 1e3:.1f}-{max(seconds) * 1e3:.1f})"
