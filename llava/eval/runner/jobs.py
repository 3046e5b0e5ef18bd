"""The questions of one benchmark for one model and budget: which are answered already, and which are left."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.common.json_files import write_json
from llava.compression.config import CompressionConfig
from llava.cost import machine
from llava.eval.benchmarks.questions import Question
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.answer_settings import check_same, hash_of, read_settings
from llava.eval.runner.device_workers import Assignment, DeviceWorkers
from llava.eval.runner.exit_status import tell
from llava.eval.runner.fingerprint import Fingerprint
from llava.eval.runner.sessions import UNKNOWN_DEVICE, Session, counted, described
from llava.inference.batches import batches
from llava.inference.engine import ModelSpec
from llava.inference.generation import GenerationSettings


@dataclass(frozen=True)
class EvaluatedModel:
    """A model under a budget, as it is evaluated.

    Attributes:
        spec: which model, and in which form it is asked; template, opening and data type are said.
        name: name of the model, in answer lines and folders.
        files: files of the model, as `llava.eval.runner.fingerprint` tells them from others.
        compression: the budget.
        compression_name: what it is called.
    """

    spec: ModelSpec
    name: str
    files: Fingerprint
    compression: CompressionConfig
    compression_name: str


@dataclass
class Job:
    """The questions of one benchmark, or of one question file.

    Attributes:
        title: title of the progress bar.
        evaluated: who answers.
        generation: how answers are generated.
        questions: all of them.
        answers: where answers go.
        settings: file that says what the answers belong to.
        about: what else it records.
        limit: only so many questions are asked, from the front.
        with_metadata: whether answer lines say what they took.
        loader_workers: processes that read images ahead.
        hint: what to do where one wants to start anew.
        left: numbers of the questions that are not answered yet, once it is open.
        problems: why questions were left unanswered, by their numbers.
        sessions: runs that gave the answers, this one last once it answers.
    """

    title: str
    evaluated: EvaluatedModel
    generation: GenerationSettings
    questions: Sequence[Question]
    answers: AnswerFile
    settings: Path
    hint: str
    about: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    with_metadata: bool = True
    loader_workers: int = 0
    left: list[int] = field(default_factory=list)
    problems: dict[int, str] = field(default_factory=dict)
    sessions: list[Session] = field(default_factory=list)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the answers belong to; how many are given at once, where, and the model's path make no difference."""
        spec, generation = self.evaluated.spec, self.generation
        identity = {
            "files": self.evaluated.files,
            "compression": self.evaluated.compression.to_dict(),
            "dtype": spec.dtype,
            "bits": spec.bits,
            "questions": hash_of(self.questions),
            "seed": generation.seed,
            "conv_mode": spec.template,
            "max_new_tokens": generation.max_new_tokens,
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "num_beams": generation.num_beams,
        }
        if any(question.video is not None for question in self.questions):
            identity["num_frames"] = spec.num_frames
        if any(question.images or question.video for question in self.questions):
            identity["image_opening"] = spec.image_opening
            identity |= spec.limits.given()
        return identity

    def open(self, fresh: bool = False) -> None:
        """Merge what a killed run left, and find out which questions are left.

        Args:
            fresh: forget what is there.

        Raises:
            OtherSettingsError: if there are answers that were given under other settings.
        """
        if fresh:
            self.answers.remove()
        known = self.answers.path.exists() or bool(self.answers.all_parts())
        if known:
            check_same(self.identity, self.settings, self.answers.path, self.hint)
        self.answers.path.parent.mkdir(parents=True, exist_ok=True)
        answered = self._take_up(known)
        self._note()
        self.left = [number for number in range(len(self.questions))[: self.limit] if number not in answered]

    def _take_up(self, known: bool) -> dict[int, dict[str, Any]]:
        """Go on with the run whose answers are there, if that is known, or begin one; returns its answers."""
        former = read_settings(self.settings) if known else {}
        self.answers = replace(self.answers, run=former.get("run") or secrets.token_hex(4))
        if not known:
            self._note()  # before foreign parts are removed: those that come later have another name, too
        answered = self.answers.merge(self.questions)
        self.sessions = counted(former.get("about", {}).get("sessions", []), len(answered))
        return answered

    def answer(self, workers: DeviceWorkers, batch_size: int) -> None:
        """Answer what is left, with a progress bar. Whatever happens, all answers are in one file at the end.

        Args:
            workers: answers them.
            batch_size: questions answered together.

        Raises:
            ValueError, llava.eval.runner.exit_status.WorkerError: as in `DeviceWorkers.answer`.
        """
        assignment = Assignment(
            self.answers, self.generation, self.evaluated.name, self.with_metadata, self.loader_workers
        )
        asked = len(range(len(self.questions))[: self.limit])
        tasks = batches(self.questions, self.left, batch_size)
        self._begin_session(workers, batch_size)
        with (
            self._merging(workers),
            tqdm(total=asked, initial=asked - len(self.left), desc=self.title, unit="question") as bar,
        ):
            for outcome in workers.answer(assignment, tasks):
                self._note_devices(workers)
                numbers = outcome.task.numbers
                self.problems |= {numbers[row]: reason for row, reason in outcome.problems.items()}
                bar.update(len(numbers))

    def report_problems(self, shown: int = 10) -> None:
        """Name the questions without an answer, on standard error."""
        if not self.problems:
            return
        tell(f"{self.title}: {len(self.problems)} questions have no answer:")
        for number, reason in sorted(self.problems.items())[:shown]:
            tell(f"  question {self.questions[number].question_id} (number {number + 1}): {reason}")
        if len(self.problems) > shown:
            tell(f"  and {len(self.problems) - shown} more")

    @contextmanager
    def _merging(self, workers: DeviceWorkers) -> Iterator[None]:
        """Merge the parts at the end, when nobody writes to them any more."""
        try:
            yield
        except KeyboardInterrupt:
            workers.close(patience=0.0)  # whoever interrupts does not want to wait; a torn line is left out
            raise
        except BaseException:
            workers.close()
            raise
        finally:
            answered = self.answers.merge(self.questions)
            self.sessions = counted(self.sessions, len(answered))
            self._note()

    def _begin_session(self, workers: DeviceWorkers, batch_size: int) -> None:
        device = machine.summary(workers.devices) or UNKNOWN_DEVICE
        session: Session = {"device": device, "versions": machine.versions(), "batch_size": batch_size}
        self.sessions.append(session | {"num_gpus": workers.size, "answers": 0})
        self._note()

    def _note_devices(self, workers: DeviceWorkers) -> None:
        """Record the devices in the settings file as soon as they are known, for a run may be killed at any time."""
        device = machine.summary(workers.devices)
        if self.sessions[-1]["device"] != device:
            self.sessions[-1]["device"] = device
            self._note()

    def _note(self) -> None:
        about = {"model": self.evaluated.spec.path, "model_base": self.evaluated.spec.base, **self.about}
        content = {"identity": self.identity, "run": self.answers.run, "about": described(about, self.sessions)}
        write_json(self.settings, content, indent=2)
