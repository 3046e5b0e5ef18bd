"""Metrics of benchmarks that ask yes or no: POPE's and MME's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_READ_BY_MME = 4


def pope_says_yes(text: str) -> bool:
    """Whether an answer counts as yes in LLaVA's reading of POPE: where its first sentence has no "No", "no" or "not".

    The sentence ends at the first full stop; commas are taken out and words stand between single spaces.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def pope_reads(text: str) -> bool:
    """Whether the sentence that `pope_says_yes` reads says yes, or says no in a way that it takes for no."""
    if not pope_says_yes(text):
        return True
    return "yes" in re.findall(r"\w+", text.split(".")[0].lower())


@dataclass(frozen=True)
class Confusion:
    """Answers to yes-or-no questions, counted.

    Attributes:
        true_positive: yes, and right.
        false_positive: yes, and wrong.
        true_negative: no, and right.
        false_negative: no, and wrong.
    """

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    @classmethod
    def count(cls, pairs: Iterable[tuple[bool, bool]]) -> Confusion:
        """Count pairs of what was answered and what is right, True for yes."""
        pairs = list(pairs)
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, False), (False, True))))

    @property
    def total(self) -> int:
        """All answers."""
        return self.true_positive + self.false_positive + self.true_negative + self.false_negative

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _share(self.true_positive + self.true_negative, self.total)

    @property
    def precision(self) -> float:
        """Share of right ones among the answers yes; 0 if there is none."""
        return _share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def recall(self) -> float:
        """Share of the questions to be answered yes that were; 0 if there is none."""
        return _share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are."""
        return _share(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)

    @property
    def yes_ratio(self) -> float:
        """Share of the answers yes."""
        return _share(self.true_positive + self.false_positive, self.total)


def mme_reading(text: str) -> str:
    """What MME's script takes an answer for: "yes", "no" or "other", told by its first four characters."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:_READ_BY_MME]), "other")


def mme_points(images: Sequence[Sequence[bool]], complete: Sequence[bool]) -> float:
    """MME's points of a subtask, at most 200: accuracy over questions and accuracy-plus over images, both in per cent.

    An image counts for accuracy-plus if all its questions are right.

    Args:
        images: whether each answer was right, image by image; at least one image with one answer.
        complete: whether all questions of an image were answered, image by image; only those count for accuracy-plus.
    """
    answers = [right for verdicts in images for right in verdicts]
    whole = [all(verdicts) for verdicts, every in zip(images, complete, strict=True) if every]
    return 100 * (_share(sum(answers), len(answers)) + _share(sum(whole), len(whole)))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
