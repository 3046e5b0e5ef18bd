"""VizWiz: questions of blind people about their photographs, some of which cannot be answered.

Files under `vizwiz/`, as LLaVA has them: `llava_test.jsonl` (questions) and `test/`. Test answers are not public, so
there is no headline but a submission.

Where the first is absent and `val.json` (it comes with `test.json`) and the images `val/` are there, the questions are
those of the validation split, and VQA's soft accuracy is the headline; to say "unanswerable" is right where people said
so. Who has unpacked LLaVA's eval.zip moves `llava_test.jsonl` away to get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava.common.json_files import write_json
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.open_answers import (
    SHORT_ANSWER,
    has_labels,
    labelled_question,
    open_scores,
    texts_by_id,
    vizwiz_submission,
)
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import file_in, need_question, one_image, read_json_as, read_questions, require_some
from llava.eval.scoring.scores import Scores
from llava.eval.scoring.vqa_normalise import evalai_answer

_FOLDER = "vizwiz"
_TEST = "llava_test.jsonl"
_VALIDATION = ("val.json", "val")
_REQUEST = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{SHORT_ANSWER}"


class VizWiz(Benchmark):
    """The test split through the server, or the validation split here."""

    name = "vizwiz"
    title = "VizWiz"

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`, and the module for which split."""
        folder = root / _FOLDER
        test = folder / _TEST
        if not test.exists() and all((folder / name).exists() for name in _VALIDATION):
            return self._validation(folder)
        return read_questions(test, folder / "test", self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`."""
        return open_scores(answers, "the evaluation server of VizWiz")

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; of marks and articles alone nothing is left to compare."""
        return bool(evalai_answer(answer.text))

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: JSON for VizWiz' server; nothing for the validation split.

        Raises:
            ValueError: if a question has no answer; the server takes only complete submissions.
        """
        if has_labels(answers):
            return None
        submission = vizwiz_submission(root / _FOLDER / _TEST, texts_by_id(answers), self.name)
        return write_json(stem.with_name(f"{stem.name}.json"), submission, end="")

    def _validation(self, folder: Path) -> list[Question]:
        path, images = (folder / name for name in _VALIDATION)
        questions = []
        for number, record in enumerate(read_json_as(list, path, self.name)):
            place = f"{path}, question {number + 1}"
            text = f"{need_question(record, 'question', place)}\n{_REQUEST}"
            image = file_in(images, one_image(record, place), place)
            questions.append(labelled_question(number, text, image, record, place))
        return require_some(questions, path)
