"""What scores are made of: float32 products, and the seeded and evenly spaced choices that look at no content."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_GOLDEN_RATIO_32 = 0x9E3779B9  # its fractional part, times 2**32


def seeded_noise(index: Tensor, seed: int) -> Tensor:
    """Pseudo-random numbers that depend on the index and the seed alone, equal on every device.

    A 32-bit integer hash (the finaliser of MurmurHash3) in 64-bit arithmetic: neither the batch, nor the
    neighbours of a sample, nor earlier calls change what a token draws.

    Args:
        index: whole numbers of any shape.
        seed: whole number, 0 or more; its last 32 bits count.

    Returns:
        float32 in [0, 1), shaped like `index`.
    """
    bits = (index.long() + (_GOLDEN_RATIO_32 * (seed + 1) & _MASK_32)) & _MASK_32
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK_32
    bits = bits ^ (bits >> 16)
    return (bits >> 8).float() / 2**24


def even_spread(index: Tensor) -> Tensor:
    """Scores whose k largest entries are spread evenly over the indices, whatever k is.

    One minus the fractional part of `index` times the golden ratio. Plain steps of N / k fall into columns of an image
    whenever they divide its width, and miss whatever stands between them; an irrational step does not.

    Args:
        index: whole numbers of any shape.

    Returns:
        float32 in (0, 1], shaped like `index`.
    """
    part = (index.long() * _GOLDEN_RATIO_32) & _MASK_32
    return 1 - (part >> 8).float() / 2**24


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from turning float32 products into half precision, which would tie and reorder scores."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
