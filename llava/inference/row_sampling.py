"""Sampling in which every row of a batch has a temperature, a share and a seed of its own.

`generate` of transformers draws all rows of a batch from one generator, so that an answer would depend on which
questions it was batched with. Here each row draws one number a token from its own, on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from llava.inference.generation import LOWEST_TEMPERATURE


@dataclass(frozen=True)
class RowSettings:
    """How one row of a batch is answered.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: tokens are sampled from the likeliest of this total share, in (0, 1].
        max_new_tokens: longest answer, 1 or more.
        seed: seed of the row, from -2**63 to 2**63 - 1.
        stop: words that end the answer and are not part of it.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0
    stop: tuple[str, ...] = ()

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature >= LOWEST_TEMPERATURE


class RowSampling(LogitsProcessor):
    """Draws the next token of every row that samples, and leaves it as the only one that greedy search can take.

    Rows whose logits are not finite are left alone, and remembered.

    Args:
        rows: one for each row of the batch.

    Attributes:
        broken: bool [B], rows whose logits were not finite in any step; None before the first.
    """

    def __init__(self, rows: Sequence[RowSettings]) -> None:
        self.broken: Tensor | None = None
        self._rows = rows
        self._whole = [number for number, row in enumerate(rows) if row.samples and row.top_p >= 1]
        self._nucleus = [number for number, row in enumerate(rows) if row.samples and row.top_p < 1]
        self._draws = {number: torch.Generator() for number in (*self._whole, *self._nucleus)}
        for number, generator in self._draws.items():
            generator.manual_seed(rows[number].seed)
        self._columns: dict[int, tuple[Tensor, Tensor]] = {}  # of temperatures and shares, by the first of their rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits [B, V]: where a row samples, minus infinity but for the token that was drawn."""
        broken = ~torch.isfinite(scores.amax(dim=-1))  # [B]; the largest is NaN where any is
        self.broken = broken if self.broken is None else self.broken | broken
        for rows, draw in ((self._whole, drawn), (self._nucleus, drawn_from_nucleus)):
            if not rows:
                continue
            places = torch.tensor(rows, device=scores.device)  # [S]
            chosen = draw(scores[places], *self._asked(rows, scores.device))  # [S, 1]
            alone = torch.full_like(scores[places], -torch.inf).scatter_(1, chosen, 0.0)  # [S, V]
            alone = torch.where(broken[places, None], scores[places], alone)
            scores = scores.index_copy(0, places, alone)
        return scores

    def _asked(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Temperatures, shares and random numbers from [0, 1) of some rows, each float32 [S, 1]."""
        if rows[0] not in self._columns:
            asked = torch.tensor([(self._rows[row].temperature, self._rows[row].top_p) for row in rows], device=device)
            self._columns[rows[0]] = asked[:, :1], asked[:, 1:]
        numbers = torch.stack([torch.rand(1, generator=self._draws[row]) for row in rows])  # [S, 1]
        return *self._columns[rows[0]], numbers.to(device)


def drawn(scores: Tensor, temperature: Tensor, top_p: Tensor, number: Tensor) -> Tensor:
    """The token of each row at which the cumulative probability passes a random number.

    Args:
        scores: logits [S, V]; minus infinity where a token may not come.
        temperature: above 0, [S, 1].
        top_p: not looked at.
        number: from [0, 1), [S, 1].

    Returns:
        int64 [S, 1].
    """
    return _passing(_probabilities(scores, temperature).cumsum(dim=-1), number)


def drawn_from_nucleus(scores: Tensor, temperature: Tensor, top_p: Tensor, number: Tensor) -> Tensor:
    """As `drawn`, among the fewest tokens, likeliest first, whose probabilities add up to `top_p` [S, 1]."""
    ranked, tokens = _probabilities(scores, temperature).sort(dim=-1, descending=True, stable=True)  # [S, V]
    before = ranked.cumsum(dim=-1) - ranked
    kept = ranked.masked_fill(before >= top_p, 0.0)
    return tokens.gather(1, _passing(kept.cumsum(dim=-1), number))


def _probabilities(scores: Tensor, temperature: Tensor) -> Tensor:
    logits = scores.float()
    return ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)  # no overflow, however low


def _passing(cumulative: Tensor, number: Tensor) -> Tensor:
    """First place of each row [S, V] where the sum passes a share of the whole; never one that adds nothing."""
    total = cumulative[:, -1:]
    number = torch.minimum(number, torch.nextafter(torch.ones_like(number), torch.zeros_like(number)))
    place = torch.searchsorted(cumulative.contiguous(), (number * total).contiguous(), right=True)
    last = torch.searchsorted(cumulative.contiguous(), total.contiguous())  # the last that adds anything
    return torch.minimum(place, last).clamp(max=cumulative.shape[-1] - 1)
