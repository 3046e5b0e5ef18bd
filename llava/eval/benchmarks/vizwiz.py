"""VizWiz: questions of blind people about their photographs, some of which cannot be answered.

Files under `vizwiz/`, as LLaVA has them: `llava_test.jsonl` (questions) and `test/`. Test answers are not public, so
there is no headline but a submission.

Where the first is absent and `val.json` (it comes with `test.json`) and the images `val/` are there, the questions are
those of the validation split, and VQA's soft accuracy is the headline; to say "unanswerable" is right where people said
so. Who has unpacked LLaVA's eval.zip moves `llava_test.jsonl` away to get there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.eval.benchmarks.open_answers import SHORT_ANSWER, OpenAnswers, labelled_question
from llava.eval.benchmarks.questions import Question
from llava.eval.benchmarks.reading import (
    file_in,
    need_id,
    need_question,
    one_image,
    read_json_as,
    read_json_lines,
    require_some,
)
from llava.eval.scoring.vqa_normalise import evalai_answer

_REQUEST = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER}"


class VizWiz(OpenAnswers):
    """The test split through the server, or the validation split here."""

    name = "vizwiz"
    title = "VizWiz"
    folder = "vizwiz"
    test = ("llava_test.jsonl", "test")
    validation = ("val.json", "val")
    submitted = "llava_test.jsonl"

    def validation_questions(self, *places: Path) -> list[Question]:
        """See `OpenAnswers.validation_questions`."""
        path, images = places
        questions = []
        for number, record in enumerate(read_json_as(list, path, self.name)):
            place = f"{path}, question {number + 1}"
            text = f"{need_question(record, 'question', place)}\n{_REQUEST}"
            image = file_in(images, one_image(record, place), place)
            questions.append(labelled_question(number, text, image, record, place))
        return require_some(questions, path)

    def submission(self, path: Path, given: Mapping[str, str]) -> list[dict[str, Any]]:
        """See `OpenAnswers.submission`: an answer for the image of every question; the server takes no fewer."""
        submission, missing = [], []
        for number, record in enumerate(require_some(read_json_lines(path, self.name), path), start=1):
            place = f"{path}, line {number}"
            question_id = str(need_id(record, "question_id", place))
            if question_id in given:
                image = one_image(record, place)
                submission.append({"image": image, "answer": evalai_answer(given[question_id])})
            else:
                missing.append(question_id)
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(missing) + len(submission)} questions of {path} have no answer, the first is "
                f"{missing[0]}; the server takes only complete submissions, so answer the others first."
            )
        return submission
