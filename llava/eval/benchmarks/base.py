"""The interface of a benchmark: reading its questions, scoring its answers, writing its submission."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from llava.eval.benchmarks.datasets import DATASETS, UNKNOWN, Dataset
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.judging.judge import Judge, unjudged_note
from llava.eval.scoring.scores import Scores


class Benchmark(ABC):
    """How to read the questions of one benchmark and how to score its answers.

    Attributes:
        name: that `--benchmarks` takes.
        title: column of the paper's tables.
        max_new_tokens: longest answer, as LLaVA's scripts set it.
        unread_as: what the rules of scoring take an answer for that they cannot read.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    max_new_tokens: ClassVar[int] = 128
    unread_as: ClassVar[str] = "wrong"

    @abstractmethod
    def questions(self, root: Path) -> list[Question]:
        """All questions, in the order of the question file.

        Args:
            root: LLaVA's `playground/data/eval`.

        Raises:
            ValueError: if a file is missing or is not what it should be; says which, and how to get it.
        """

    @abstractmethod
    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """Score answers, without a judge.

        Args:
            root: LLaVA's `playground/data/eval`.
            answers: at least one question with its answer, in file order; those not answered are left out, and the
                numbers are about the answered ones.

        Raises:
            ValueError: if a file that scoring needs is missing or does not fit the questions.
        """

    def dataset(self) -> Dataset:
        """What has to be downloaded from where, and how many questions there are then, for `llava.eval.data`."""
        return DATASETS.get(self.name, UNKNOWN)

    def reads(self, answer: Answer) -> bool:
        """Whether the rules of scoring find in an answer what was asked for, be it right or wrong.

        Args:
            answer: a question with an answer that is not empty.
        """
        return True

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """Write what the benchmark's server or official script takes, where it has one.

        Args:
            root: LLaVA's `playground/data/eval`.
            answers: questions with answers.
            stem: path without suffix; the file is named after it.

        Returns:
            The file, or None where there is nothing to submit.
        """
        return None


class JudgedBenchmark(Benchmark):
    """A benchmark whose answers are graded by a language model; `score` gives what can be told without one."""

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark`; without a judge there is no number."""
        return Scores(None, notes=(unjudged_note(self.title),))

    @abstractmethod
    def judged(self, root: Path, answers: Sequence[Answer], judge: Judge, reviews: Path) -> Scores:
        """Score answers with a judge; goes on where an earlier call with the same `reviews` stopped.

        Args:
            root: LLaVA's `playground/data/eval`.
            answers: answers with their questions; at least one.
            judge: grades texts.
            reviews: JSON-lines file of the judge's verdicts, appended to as they come.

        Raises:
            ValueError: if the judge cannot be reached or gives no grade; verdicts so far are kept.
        """
