"""MME: two yes-or-no questions about each image, in fourteen subtasks of perception and cognition.

Files under `MME/`, as LLaVA has them: `llava_mme.jsonl` (questions) and `MME_Benchmark_release_version/`, one folder a
subtask. Images and the files of right answers lie in it side by side, or in `images/` and `questions_answers_YN/`; both
occur in MME's releases.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.common.atomic_write import whole_file
from llava.common.outside_files import read_text
from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.open_answers import SHORT_ANSWER
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import read_questions, require
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.yes_no import mme_points, mme_reading

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
_PARTS = {"perception": PERCEPTION, "cognition": COGNITION}

_FOLDER = "MME"
_RELEASE = "MME_Benchmark_release_version"
_REQUEST = "Please answer yes or no."


@dataclass(frozen=True)
class Truth:
    """A line of MME's files of right answers.

    Attributes:
        question: question as it stands there.
        answer: "Yes" or "No".
    """

    question: str
    answer: str


Truths = Mapping[tuple[str, str, str], Truth]
"""Right answers by subtask, name of the image without suffix, and question without requests."""


@dataclass(frozen=True)
class _Verdict:
    file: str
    truth: Truth
    text: str

    @property
    def right(self) -> bool:
        return mme_reading(self.text) == self.truth.answer.lower()


class MME(Benchmark):
    """Points: accuracy and accuracy-plus in per cent, summed over the subtasks of perception and cognition."""

    name = "mme"
    title = "MME"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; an image is looked for in both layouts."""
        folder = root / _FOLDER
        return [
            dataclasses.replace(question, images=tuple(_present(Path(str(image))) for image in question.images))
            for question in read_questions(folder / "llava_mme.jsonl", folder / _RELEASE, self.name)
        ]

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`; an image with only one of its questions answered counts for accuracy alone."""
        truths = read_truths(root / _FOLDER / _RELEASE)
        groups, asked = _by_image(truths, answers), _asked(truths)
        values: dict[str, float] = {}
        for category in sorted({category for category, _ in groups}):
            images = {key: verdicts for key, verdicts in groups.items() if key[0] == category}
            values[category] = mme_points(
                [[verdict.right for verdict in verdicts] for verdicts in images.values()],
                [len(verdicts) >= asked[key] for key, verdicts in images.items()],
            )
        sums = {name: sum(values.get(category, 0.0) for category in part) for name, part in _PARTS.items()}
        total = sum(sums.values())
        notes = ["The headline is the sum of perception and cognition, at most 2800."]
        missing = [category for category in (*PERCEPTION, *COGNITION) if category not in values]
        if missing:
            notes.append(f"No question of {', '.join(missing)} was answered; the sums are too low by these.")
        partial = sum(len(verdicts) < asked[key] for key, verdicts in groups.items())
        if partial:
            notes.append(f"{partial} images have a question without an answer; accuracy-plus is over the others.")
        return Scores(total, {"total": total, **sums, **values}, tuple(notes))

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`."""
        return mme_reading(answer.text) != "other"

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: an archive of the files that MME's `calculation.py --results_dir` reads.

        There is one a subtask, with image, question, right answer and answer a line. An image with a question that was
        not answered is left out, since that script takes lines by twos.
        """
        truths = read_truths(root / _FOLDER / _RELEASE)
        asked = _asked(truths)
        lines: dict[str, list[str]] = defaultdict(list)
        for key, verdicts in _by_image(truths, answers).items():
            if len(verdicts) >= asked[key]:
                lines[key[0]] += [_line(verdict) for verdict in verdicts]
        path = stem.with_name(f"{stem.name}.zip")
        with whole_file(path, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for category, content in lines.items():
                archive.writestr(f"{category}.txt", "".join(content))
        return path


def read_truths(release: Path) -> Truths:
    """The right answers of MME.

    Args:
        release: `MME_Benchmark_release_version`.

    Raises:
        ValueError: if the folder is missing or holds none, or a line is not a question, a tab and Yes or No.
    """
    truths = {}
    for category in sorted(path for path in require(release, MME.name).iterdir() if path.is_dir()):
        inner = category / "questions_answers_YN"
        for path in sorted((inner if inner.is_dir() else category).glob("*.txt")):
            for number, line in enumerate(read_text(path).splitlines(), start=1):
                if not line.strip():
                    continue
                question, _, answer = (part.strip() for part in line.strip().partition("\t"))
                if answer.lower() not in ("yes", "no"):
                    raise ValueError(
                        f"{path}, line {number} is not a question, a tab and Yes or No; download MME again."
                    )
                truths[category.name, path.stem, _plain(question)] = Truth(question, answer)
    if not truths:
        raise ValueError(f"{release} holds no file of right answers; put the folders of MME's subtasks there.")
    return truths


def _plain(question: str) -> str:
    """A question without the requests that MME and LLaVA put behind it, with single spaces."""
    return " ".join(question.replace(SHORT_ANSWER, " ").replace(_REQUEST, " ").split())


def _by_image(truths: Truths, answers: Sequence[Answer]) -> dict[tuple[str, str], list[_Verdict]]:
    """Answers by subtask and image, in the order of the questions."""
    groups: dict[tuple[str, str], list[_Verdict]] = defaultdict(list)
    for answer in answers:
        name = Path(str(answer.question.question_id))
        category, image = name.parts[0] if name.parts else "", name.name.split(".")[0]
        truth = truths.get((category, image, _plain(answer.question.text)))
        if truth is None:
            raise ValueError(
                f"MME's files have no answer to {shown(_plain(answer.question.text))} about "
                f"{shown(str(answer.question.question_id))[1:-1]} (looked for in {category}/{image}.txt); {_RELEASE} "
                "and llava_mme.jsonl do not belong together, download both again."
            )
        groups[category, image].append(_Verdict(name.name, truth, answer.text))
    return groups


def _asked(truths: Truths) -> Counter[tuple[str, str]]:
    """How many questions there are about each image."""
    return Counter((category, image) for category, image, _ in truths)


def _line(verdict: _Verdict) -> str:
    answer = " ".join(verdict.text.split())
    return "\t".join((verdict.file, verdict.truth.question, verdict.truth.answer, answer)) + "\n"


def _present(image: Path) -> Path:
    """The image where it lies, in the folder of its subtask or in `images/` there; as it was if in neither."""
    parent = image.parent
    other = parent.parent if parent.name == "images" else parent / "images"
    return other / image.name if not image.exists() and (other / image.name).exists() else image
