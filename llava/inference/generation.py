"""Settings of generation, and a cache that counts visual tokens meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from llava.common.shown import shown
from llava.compression.layout import TokenLayout
from llava.model.staged_cache import StagedCache

LOWEST_TEMPERATURE = 1e-5
"""Below it the likeliest token is taken: what is left of the others is no number any more."""


@dataclass(frozen=True)
class GenerationSettings:
    """LLaVA's settings of generation; None leaves the checkpoint's own.

    Attributes:
        temperature: 0, or less than `LOWEST_TEMPERATURE`, takes the likeliest token.
        top_p: tokens are sampled from the likeliest of this total share, in (0, 1].
        num_beams: number of beams of a beam search, 1 or more.
        max_new_tokens: longest answer, 1 or more.
        seed: seed of sampling in batches.
        more: other options of transformers' `generate`.

    Raises:
        ValueError: if a value is no number or out of range.
    """

    temperature: float | None = None
    top_p: float | None = None
    num_beams: int | None = None
    max_new_tokens: int | None = None
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.temperature is not None and not (_is_number(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(
                f"temperature is {shown(self.temperature)}; it must be 0 (the likeliest token) or more, and finite."
            )
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p is {shown(self.top_p)}; it must be above 0 and at most 1.")
        for name in ("num_beams", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and value >= 1 and value == value // 1):
                raise ValueError(f"{name} is {shown(value)}; it must be 1 or more, and whole.")

    def options(self) -> dict[str, Any]:
        """Options of transformers' `generate`."""
        options: dict[str, Any] = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        if self.temperature is not None:
            samples = self.temperature >= LOWEST_TEMPERATURE
            options["do_sample"] = samples
            # The neutral values override those that a checkpoint's generation_config.json may hold.
            options["temperature"], options["top_p"] = (self.temperature, self.top_p) if samples else (1.0, 1)
        return {name: value for name, value in options.items() if value is not None} | dict(self.more)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


class CountingCache(StagedCache):
    """A cache that counts the visual tokens of the prompt in each stage of the decoder.

    Attributes:
        first_layers: first layers of the stages.
        tokens: visual tokens of each row as they enter a stage, int64 [B] for each.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.first_layers: list[int] = []
        self.tokens: list[Tensor] = []

    def begin_stage(self, first_layer: int, layout: TokenLayout) -> None:
        """See `StagedCache`."""
        super().begin_stage(first_layer, layout)
        self.first_layers.append(first_layer)
        self.tokens.append(torch.tensor(layout.visual))

    def averages(self, beams: int) -> list[float]:
        """Mean over layers for each prompt, of which every one has `beams` rows."""
        ends = [*self.first_layers[1:], len(self.layers)]
        spans = [end - first for first, end in zip(self.first_layers, ends, strict=True)]
        by_stage = torch.stack(self.tokens).cpu()[:, ::beams]
        totals = (by_stage * torch.tensor(spans)[:, None]).sum(dim=0)
        return [total / len(self.layers) for total in totals.tolist()]
