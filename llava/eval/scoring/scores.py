"""The scores of a benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scores:
    """Scores of the answers to a benchmark.

    Attributes:
        headline: the number that tables print, on the scale they print it (accuracy in per cent, MME in points);
            None where only a server or a judge can tell.
        values: every number by name, the headline among them.
        notes: sentences that a reader of the numbers has to know.
        counted: answers that the headline is about, where some were left out: a judge gave no grade.
        judged_by: what its verdicts tell of a judge: `answered_as`, the names that the server gave the model, and
            `temperature`, None where the model takes none.
    """

    headline: float | None
    values: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    counted: int | None = None
    judged_by: Mapping[str, Any] = field(default_factory=dict)


def per_cent(shares: Collection[float]) -> float:
    """The mean of at least one share of 1 (or verdict, right or wrong), in per cent."""
    return 100 * sum(shares) / len(shares)
