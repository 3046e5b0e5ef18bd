"""Kinds of findings of a data check, each with its severity and what it means for training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from llava.common.yaml_files import table_beside


class Severity(StrEnum):
    """ERROR: training would stop at the record, or it has no label. WARNING: training runs, but it looks wrong."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class FindingKind:
    """A kind of fault: its severity and, in a phrase, what it means for training."""

    severity: Severity
    meaning: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of one record: a key of `KINDS`, and the particulars."""

    kind: str
    detail: str

    @property
    def is_error(self) -> bool:
        """Whether the record must be left out."""
        return KINDS[self.kind].severity is Severity.ERROR


KINDS = {
    name: FindingKind(Severity(severity), meaning)
    for severity, meanings in table_beside(__file__).items()
    for name, meaning in meanings.items()
}
"""Kinds by name, in the order of the report; from findings.yaml."""


class Fit(NamedTuple):
    """A record as one budget leaves it, after cutting, and what the cut did.

    `text` and `visual` are tokens.
    """

    text: int
    images: int
    truncated: bool
    supervised: bool
    videos: int = 0
    visual: int = 0


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """What was learnt about one record without opening its images.

    Attributes:
        id: id of the record; None where it gives none.
        images: names of its image files.
        num_words: the trainer's measure of length.
        fits: one for every budget; empty where the record cannot be encoded.
        findings: what is wrong with it.
        videos: names of its videos.
    """

    id: str | None = None
    images: tuple[str, ...] = ()
    num_words: int = 0
    fits: tuple[Fit, ...] = ()
    findings: tuple[Finding, ...] = ()
    videos: tuple[str, ...] = ()
