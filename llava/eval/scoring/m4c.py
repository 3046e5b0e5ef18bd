"""Soft accuracy of one short answer against those of ten people: TextVQA's (M4C) and VQA's."""

from __future__ import annotations

from collections.abc import Sequence

from llava.eval.scoring.vqa_normalise import evalai_answer, normalise_answer, strip_spaces

PEOPLE = 10
"""Answers that TextVQA, VQAv2 and VizWiz have for every question."""

_ENOUGH = 3


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """How far people agree with an answer, from 0 to 1.

    Each of them is left out once; an answer that three of the others gave counts 1, one that fewer gave a third for
    each; the mean of that. With ten people one who agrees is worth 0.3, two 0.6, three 0.9, and four 1.

    Args:
        answer: normalised.
        given: people's answers, normalised; at least one.
    """
    same = sum(other == answer for other in given)
    shares = [min(1.0, (same - (other == answer)) / _ENOUGH) for other in given]
    return sum(shares) / len(shares)


def m4c_accuracy(text: str, given: Sequence[str]) -> float:
    """TextVQA's accuracy of one answer, from 0 to 1.

    Args:
        text: what the model said.
        given: ten people's answers.

    Raises:
        ValueError: if they are not ten.
    """
    _check(given)
    return soft_accuracy(evalai_answer(text), [evalai_answer(other) for other in given])


def vqa_accuracy(text: str, given: Sequence[str]) -> float:
    """VQA's accuracy of one answer as LLaVA submits it, from 0 to 1.

    The answer goes through `evalai_answer`, as in a submission; then it is compared as the official evaluation does,
    which normalises both sides where people disagree and neither where all ten said the same. Arguments and errors as
    `m4c_accuracy`.
    """
    _check(given)
    answer, others = evalai_answer(text), [strip_spaces(other) for other in given]
    if len(set(others)) > 1:
        answer, others = normalise_answer(answer), [normalise_answer(other) for other in others]
    return soft_accuracy(answer, others)


def _check(given: Sequence[str]) -> None:
    if len(given) != PEOPLE:
        raise ValueError(f"A question has {len(given)} people's answers; it needs {PEOPLE}. Download its file again.")
