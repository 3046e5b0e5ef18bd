"""What a worker process sends back about one conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from llava.data.check.findings import Finding


class Fit(NamedTuple):
    """A record as one budget leaves it: `text` tokens and `images` after cutting, and what the cut did."""

    text: int
    images: int
    truncated: bool
    supervised: bool


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """What was learnt about one record without opening its images.

    Attributes:
        id: as the record gives it; None where it gives none.
        images: names of its image files.
        num_words: the trainer's measure of length.
        fits: one for every budget; empty where the record cannot be encoded.
        findings: what is wrong with it.
    """

    id: str | None = None
    images: tuple[str, ...] = ()
    num_words: int = 0
    fits: tuple[Fit, ...] = ()
    findings: tuple[Finding, ...] = ()
