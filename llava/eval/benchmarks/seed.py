"""SEED-Bench: questions with four options about images (types 1 to 9) and frames of videos (types 10 to 12).

Files under `seed_bench/`, as LLaVA has them: `llava-seed-bench.jsonl` (questions), `SEED-Bench.json` (right answers),
`SEED-Bench-image/` and `SEED-Bench-video-image/` (the middle frame of each video). SEED-I is about images alone: where
they are there and the frames are not, the questions about videos are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.common.json_lines import write_lines
from llava.common.shown import shown
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question, texts_by_id
from llava.eval.benchmarks.reading import (
    need_field,
    need_id,
    need_list,
    need_text,
    read_json,
    read_questions,
    require_some,
)
from llava.eval.scoring.scores import Scores, per_cent

_FOLDER = "seed_bench"
_IMAGES = "SEED-Bench-image"
_FRAMES = "SEED-Bench-video-image"
_LAST_IMAGE_TYPE = 9
LETTERS = ("A", "B", "C", "D")
_NO_FRAMES = (
    f"{_FOLDER}/{_FRAMES} is missing, so only the questions about images were asked: `total` is about these alone."
)


@dataclass(frozen=True)
class SeedQuestion:
    """What SEED-Bench.json says of one question.

    Attributes:
        question_id: id in the file.
        answer: the letter of the right option.
        type_name: kind of question in words, e.g. "Instance Counting".
        kind: "image" or "video".
    """

    question_id: int | str
    answer: str
    type_name: str
    kind: str


class SEED(Benchmark):
    """Accuracy on the questions about images (SEED-I), about videos, and on all."""

    name = "seed"
    title = "SEED-I"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; without the frames of the videos, those about images."""
        folder = root / _FOLDER
        questions = read_questions(folder / "llava-seed-bench.jsonl", folder, self.name)
        if not lacks_frames(root):
            return questions
        about_images = [question for question in questions if not _shows_frame(question)]
        if not about_images:
            raise ValueError(f"{folder / 'llava-seed-bench.jsonl'} asks about videos alone; {_NO_FRAMES}")
        return about_images

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`; an answer is right if it is the letter and nothing else."""
        path = root / _FOLDER / "SEED-Bench.json"
        asked = {str(question.question_id): question for question in read_annotation(path, self.name)}
        given = texts_by_id(answers)
        unknown = next((number for number in given if number not in asked), None)
        if unknown is not None:
            raise ValueError(f"{path} has no question {unknown!r}, but it was answered; download both files again.")
        values = seed_accuracies([question for number, question in asked.items() if number in given], given)
        if "image" not in values:
            return Scores(None, values, ("No question about an image was answered, so there is no SEED-I.",))
        return Scores(values["image"], values, (_NO_FRAMES,) if lacks_frames(root) else ())

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`."""
        return answer.text in LETTERS

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: JSON lines for the leaderboard."""
        path = stem.with_name(f"{stem.name}.jsonl")
        asked = read_annotation(root / _FOLDER / "SEED-Bench.json", self.name)
        given = texts_by_id(answers)
        write_predictions(path, [question for question in asked if str(question.question_id) in given], given)
        return path


def lacks_frames(root: Path) -> bool:
    """Whether images are there but no frames of videos, so that only questions about images can be asked.

    Args:
        root: LLaVA's `playground/data/eval`.
    """
    return _holds_something(root / _FOLDER / _IMAGES) and not _holds_something(root / _FOLDER / _FRAMES)


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _shows_frame(question: Question) -> bool:
    return any(isinstance(image, Path) and _FRAMES in image.parts for image in question.images)


def read_annotation(path: Path, benchmark: str = SEED.name) -> list[SeedQuestion]:
    """The questions of SEED-Bench.json, in its order.

    Args:
        path: the file.
        benchmark: name, for errors.

    Raises:
        ValueError: if it is missing or lacks something.
    """
    data = read_json(path, benchmark)
    types = need_field(data, "question_type", str(path))
    if not isinstance(types, dict) or not all(isinstance(number, int) for number in types.values()):
        raise ValueError(f"{path}, question_type is {shown(types)}; it must be an object of numbers, by name.")
    names = {number: name for name, number in types.items()}
    questions = []
    for number, record in enumerate(need_list(data, "questions", str(path)), start=1):
        place = f"{path}, question {number}"
        type_id = need_field(record, "question_type_id", place)
        if isinstance(type_id, bool) or not isinstance(type_id, int):
            raise ValueError(f"{place} has the question_type_id {shown(type_id)}; it must be a whole number.")
        kind = record.get("data_type", "image" if type_id <= _LAST_IMAGE_TYPE else "video")
        if kind not in ("image", "video"):
            raise ValueError(f"{place} has the data_type {shown(kind)}; it must be image or video.")
        answer = need_text(record, "answer", place)
        if answer not in LETTERS:
            raise ValueError(f"{place} has the answer {shown(answer)}; it must be one of {', '.join(LETTERS)}.")
        questions.append(
            SeedQuestion(
                need_id(record, "question_id", place),
                answer,
                names.get(type_id, f"type {type_id}"),
                kind,
            )
        )
    return require_some(questions, path)


def seed_accuracies(questions: Sequence[SeedQuestion], given: Mapping[str, str]) -> dict[str, float]:
    """Accuracy in per cent by question type, then of each kind (`image`, `video`) and in `total`.

    Args:
        questions: that count, in any order; at least one.
        given: answers by question id as text; a missing one is wrong.
    """
    groups: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        right = given.get(str(question.question_id)) == question.answer
        for group in (question.type_name, question.kind, "total"):
            groups[group].append(right)
    kinds = [kind for kind in ("image", "video", "total") if kind in groups]
    types = dict.fromkeys(question.type_name for question in questions)
    return {name: per_cent(groups[name]) for name in [*types, *kinds]}


def write_predictions(path: Path, questions: Sequence[SeedQuestion], given: Mapping[str, str]) -> None:
    """Write what the leaderboard takes: `question_id` and `prediction` a line.

    Args:
        path: file to write, in one step.
        questions: questions in the order of the file.
        given: answers by question id as text.

    Raises:
        ValueError: if one has no answer.
    """
    missing = [str(question.question_id) for question in questions if str(question.question_id) not in given]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(questions)} questions have no answer, the first is {missing[0]}; answer them all "
            "before you submit."
        )
    write_lines(
        path,
        (
            {"question_id": question.question_id, "prediction": given[str(question.question_id)]}
            for question in questions
        ),
    )
