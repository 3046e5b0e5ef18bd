"""Choices that look at no content: the seeded and the evenly spaced control of either stage."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF


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
    bits = (index.long() + (0x9E3779B9 * (seed + 1) & _MASK_32)) & _MASK_32
    for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        bits = ((bits ^ (bits >> shift)) * factor) & _MASK_32
    bits = bits ^ (bits >> 16)
    return (bits >> 8).float() / 2**24


def evenly_spaced(rank: Tensor, total: Tensor | int, keep: Tensor | int) -> Tensor:
    """Mark `keep` of `total` ranks, evenly spaced.

    Args:
        rank: 0-based position of each token among the `total` tokens of its sample.
        total: how many there are, broadcastable to `rank`.
        keep: how many to mark, at most `total`.

    Returns:
        bool, shaped like `rank` broadcast with `total`: exactly `keep` of the ranks 0..total-1 are True.
    """
    total = torch.as_tensor(total, device=rank.device).clamp(min=1)
    return ((rank + 1) * keep) // total > (rank * keep) // total
