"""VQAv2: everyday questions about COCO's images.

Files under `vqav2/`, as LLaVA has them: `llava_vqav2_mscoco_test-dev2015.jsonl` (questions),
`llava_vqav2_mscoco_test2015.jsonl` (questions that a submission must list) and `test2015/`. Test answers are not
public, so there is no headline but a submission.

Where the first of these is absent and `v2_OpenEnded_mscoco_val2014_questions.json`,
`v2_mscoco_val2014_annotations.json` and `val2014/` are all there, the questions are those of the validation split, and
VQA's soft accuracy is the headline. Who has unpacked LLaVA's eval.zip moves the first file away to get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import need, write_json
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.open_answers import (
    SHORT_ANSWER,
    has_labels,
    labelled_question,
    open_scores,
    texts_by_id,
    vqav2_submission,
)
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_id, need_list, need_question, read_json_as, read_questions, require_some
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.vqa_normalise import evalai_answer

SUBMITTED = "llava_vqav2_mscoco_test2015.jsonl"
"""Lists the questions of a submission."""

_FOLDER = "vqav2"
_TEST = "llava_vqav2_mscoco_test-dev2015.jsonl"
_VALIDATION = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014")


class VQAv2(Benchmark):
    """Test-dev through the server, or the validation split here."""

    name = "vqav2"
    title = "VQAv2"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`, and the module for which split."""
        folder = root / _FOLDER
        test = folder / _TEST
        if not test.exists() and all((folder / name).exists() for name in _VALIDATION):
            return self._validation(folder)
        return read_questions(test, folder / "test2015", self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`."""
        return open_scores(answers, "the evaluation server of VQA")

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; of marks and articles alone nothing is left to compare."""
        return bool(evalai_answer(answer.text))

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: JSON for VQA's server; nothing for the validation split.

        Raises:
            ValueError: if the file that lists the questions of a submission is missing.
        """
        if has_labels(answers):
            return None
        submission = vqav2_submission(root / _FOLDER / SUBMITTED, texts_by_id(answers), self.name)
        return write_json(stem.with_name(f"{stem.name}.json"), submission, end="")

    def _validation(self, folder: Path) -> list[Question]:
        asked, labels, images = (folder / name for name in _VALIDATION)
        annotations = {}
        for number, record in enumerate(_records(labels, "annotations"), start=1):
            annotations[need_id(record, "question_id", f"{labels}, annotation {number}")] = record
        questions = []
        for number, record in enumerate(_records(asked, "questions"), start=1):
            place = f"{asked}, question {number}"
            question_id = need_id(record, "question_id", place)
            if question_id not in annotations:
                raise ValueError(f"{labels} has no annotation of question {question_id}; download both files again.")
            number_of_image = need(record, "image_id", int, place)
            image = images / f"COCO_val2014_{number_of_image:012d}.jpg"
            text = f"{need_question(record, 'question', place)}\n{SHORT_ANSWER}"
            label_place = f"{labels}, question {question_id}"
            questions.append(labelled_question(question_id, text, image, annotations[question_id], label_place))
        return require_some(questions, asked)


def _records(path: Path, name: str) -> list[Any]:
    """The list of that name in one of VQA's files."""
    return need_list(read_json_as(dict, path, VQAv2.name), name, str(path))
