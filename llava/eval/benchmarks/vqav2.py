"""VQAv2: everyday questions about COCO's images.

Files under `vqav2/`, as LLaVA has them: `llava_vqav2_mscoco_test-dev2015.jsonl` (questions),
`llava_vqav2_mscoco_test2015.jsonl` (questions that a submission must list) and `test2015/`. Test answers are not
public, so there is no headline but a submission.

Where the first of these is absent and `v2_OpenEnded_mscoco_val2014_questions.json`,
`v2_mscoco_val2014_annotations.json` and `val2014/` are all there, the questions are those of the validation split, and
VQA's soft accuracy is the headline. Who has unpacked LLaVA's eval.zip moves the first file away to get there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.common.json_files import need
from llava.common.shown import shown
from llava.eval.benchmarks.open_answers import SHORT_ANSWER, OpenAnswers, labelled_question
from llava.eval.benchmarks.questions import Question
from llava.eval.benchmarks.reading import need_id, need_list, need_question, read_json_as, read_json_lines, require_some
from llava.eval.scoring.vqa_normalise import evalai_answer


class VQAv2(OpenAnswers):
    """Test-dev through the server, or the validation split here."""

    name = "vqav2"
    title = "VQAv2"
    folder = "vqav2"
    test = ("llava_vqav2_mscoco_test-dev2015.jsonl", "test2015")
    validation = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json", "val2014")
    submitted = "llava_vqav2_mscoco_test2015.jsonl"

    def validation_questions(self, *places: Path) -> list[Question]:
        """See `OpenAnswers.validation_questions`."""
        asked, labels, images = places
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

    def submission(self, path: Path, given: Mapping[str, str]) -> list[dict[str, Any]]:
        """See `OpenAnswers.submission`: every question of the whole test split, empty where there is no answer."""
        submission, unlisted = [], dict.fromkeys(given)
        for number, record in enumerate(require_some(read_json_lines(path, self.name), path), start=1):
            question_id = need_id(record, "question_id", f"{path}, line {number}")
            text = given.get(str(question_id))
            unlisted.pop(str(question_id), None)
            submission.append({"question_id": question_id, "answer": "" if text is None else evalai_answer(text)})
        if unlisted:
            raise ValueError(
                f"{path} lacks {len(unlisted)} of {len(given)} questions that were answered, the first is "
                f"{shown(next(iter(unlisted)))[1:-1]}; the two files do not belong together, download both again."
            )
        return submission


def _records(path: Path, name: str) -> list[Any]:
    """The list of that name in one of VQA's files."""
    return need_list(read_json_as(dict, path, VQAv2.name), name, str(path))
