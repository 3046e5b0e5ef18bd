"""One model under one budget, and the benchmarks it is asked: what is answered already, and what is left."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.compression.config import CompressionConfig
from llava.conversation import SeparatorStyle, get_template
from llava.eval import machine
from llava.eval.answering import Manner
from llava.eval.answers import AnswerFile
from llava.eval.asking import batches
from llava.eval.questions import Question
from llava.eval.settings import check_same, hash_of, write_settings
from llava.eval.workers import Assignment, Crew


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        model, model_base: paths or hub names.
        name: of the model, in answer lines and folders.
        weights: of `llava.eval.settings.weights_of`.
        compression: the budget.
        compression_name: what it is called.
        dtype: of the weights.
        bits: 4 or 8 where the language model is quantised.
    """

    model: str
    model_base: str | None
    name: str
    weights: Sequence[Sequence[Any]]
    compression: CompressionConfig
    compression_name: str
    dtype: str
    bits: int | None = None


@dataclass
class Job:
    """The questions of one benchmark, or of one question file.

    Attributes:
        title: for the progress bar.
        subject: who answers.
        manner: how to ask.
        questions: all of them.
        answers: where answers go.
        settings: file that says what the answers belong to.
        about: what else it records.
        limit: only so many questions are asked, from the front.
        with_metadata: whether answer lines say what they took.
        way_out: what to do where one wants to start anew.
        problems: why questions were left unanswered, by their numbers.
    """

    title: str
    subject: Subject
    manner: Manner
    questions: Sequence[Question]
    answers: AnswerFile
    settings: Path
    way_out: str
    about: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    with_metadata: bool = True
    problems: dict[int, str] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What the answers belong to; how many are given at once and where makes no difference to them."""
        manner = dataclasses.asdict(self.manner)
        seed = manner.pop("seed")
        del manner["loader_workers"]
        if all(question.video is None for question in self.questions):
            del manner["num_frames"]
        return {
            "model": self.subject.model,
            "model_base": self.subject.model_base,
            "weights": self.subject.weights,
            "compression": self.subject.compression.to_dict(),
            "dtype": self.subject.dtype,
            "bits": self.subject.bits,
            "questions": hash_of(self.questions),
            "seed": seed,
            **manner,
        }

    def open(self) -> list[int]:
        """Merge what a killed run left; returns the numbers of the questions that are left.

        Raises:
            ValueError: if there are answers that were given under other settings.
        """
        identity = self.identity()
        if self.answers.path.exists() or self.answers.parts():
            check_same(identity, self.settings, self.answers.path, self.way_out)
        self.answers.path.parent.mkdir(parents=True, exist_ok=True)
        answered = self.answers.merge(self.questions)
        if not answered or not self.settings.is_file():
            self._note_devices([])
        return [number for number in range(len(self.questions))[: self.limit] if number not in answered]

    def answer(self, left: Sequence[int], crew: Crew, batch_size: int) -> None:
        """Answer what is left, with a progress bar. Whatever happens, all answers are in one file at the end.

        Args:
            left: numbers of questions.
            crew: answers them.
            batch_size: questions answered together.

        Raises:
            ValueError, llava.eval.workers.WorkerError: as in `Crew.answer`.
        """
        assignment = Assignment(self.answers, self.manner, self.subject.name, self.with_metadata)
        asked = len(range(len(self.questions))[: self.limit])
        tasks = batches(self.questions, left, batch_size)
        with (
            self._merging(crew),
            tqdm(total=asked, initial=asked - len(left), desc=self.title, unit="question") as bar,
        ):
            for count, outcome in enumerate(crew.answer(assignment, tasks)):
                if count == 0:
                    self._note_devices(crew.devices)
                numbers = outcome.task.numbers
                self.problems |= {numbers[row]: reason for row, reason in outcome.problems.items()}
                bar.update(len(numbers))
        self._note_devices(crew.devices)

    def report_problems(self, shown: int = 10) -> None:
        """Name the questions without an answer, on standard error."""
        if not self.problems:
            return
        print(f"{self.title}: {len(self.problems)} questions have no answer:", file=sys.stderr)
        for number, reason in sorted(self.problems.items())[:shown]:
            print(f"  question {self.questions[number].question_id} (number {number + 1}): {reason}", file=sys.stderr)
        if len(self.problems) > shown:
            print(f"  and {len(self.problems) - shown} more", file=sys.stderr)

    @contextmanager
    def _merging(self, crew: Crew) -> Iterator[None]:
        """Merge the parts at the end, when nobody writes to them any more."""
        try:
            yield
        except BaseException:
            crew.close()
            raise
        finally:
            self.answers.merge(self.questions)

    def _note_devices(self, devices: Sequence[str]) -> None:
        about = {**self.about, "versions": machine.versions(), "device": machine.summary(devices)}
        write_settings(self.settings, self.identity(), about)


def check_template(conv_mode: str) -> None:
    """Refuse templates that nobody can be asked in.

    Raises:
        ValueError: if there is no such template, or it has no roles.
    """
    if get_template(conv_mode).sep_style is SeparatorStyle.PLAIN:
        raise ValueError(f"Template {conv_mode!r} has no roles to ask in; choose another --conv-mode.")
