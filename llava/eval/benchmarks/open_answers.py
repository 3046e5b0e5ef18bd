"""What VQAv2 and VizWiz share: short answers, ten people's answers where the split has labels, servers where not."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from llava.common.json_files import need, write_json
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question, texts_by_id
from llava.eval.benchmarks.reading import need_list, need_text, read_questions
from llava.eval.scoring.m4c import vqa_accuracy
from llava.eval.scoring.scores import Scores, per_cent
from llava.eval.scoring.vqa_normalise import evalai_answer

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What LLaVA puts behind a question that has a short answer."""

_ANSWERS = "people"
_OF_VALIDATION = (
    "Validation split, scored here with the official formula; papers print what the server says of the test split."
)


class OpenAnswers(Benchmark):
    """A test split through its server, or the validation split, which has public answers, here.

    The validation split is asked where the questions of the test split are absent and all of its own is there.

    Attributes:
        folder: folder of the benchmark.
        test: question file of the test split, and folder of its images.
        validation: files and folders of the validation split.
        submitted: lists the questions of a submission.
    """

    folder: ClassVar[str]
    test: ClassVar[tuple[str, str]]
    validation: ClassVar[tuple[str, ...]]
    submitted: ClassVar[str]

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`, and the class for which split."""
        asked, images = (root / self.folder / name for name in self.test)
        places = [root / self.folder / name for name in self.validation]
        if not asked.exists() and all(place.exists() for place in places):
            return self.validation_questions(*places)
        return read_questions(asked, images, self.name)

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`: soft accuracy in per cent, in all and by type of answer; none without labels."""
        groups: dict[str, list[float]] = defaultdict(list)
        for answer in answers:
            facts = answer.question.facts
            if _ANSWERS not in facts:
                server = f"the evaluation server of {self.title.removesuffix('v2')}"
                note = f"These questions have no public labels; {server} scores the submission file."
                return Scores(None, notes=(note,))
            try:
                share = vqa_accuracy(answer.text, facts[_ANSWERS])
            except ValueError as error:
                raise ValueError(f"The annotation of question {answer.question.question_id}: {error}") from error
            groups["accuracy"].append(share)
            if facts["answer_type"]:
                groups[f"answer_type/{facts['answer_type']}"].append(share)
        values = {name: per_cent(shares) for name, shares in groups.items()}
        return Scores(values["accuracy"], values, (_OF_VALIDATION,))

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; of marks and articles alone nothing is left to compare."""
        return bool(evalai_answer(answer.text))

    def write_submission(self, root: Path, answers: Sequence[Answer], stem: Path) -> Path | None:
        """See `Benchmark.write_submission`: JSON for the server; nothing for the validation split."""
        if any(_ANSWERS in answer.question.facts for answer in answers):
            return None
        submission = self.submission(root / self.folder / self.submitted, texts_by_id(answers))
        return write_json(stem.with_name(f"{stem.name}.json"), submission, end="")

    @abstractmethod
    def validation_questions(self, *places: Path) -> list[Question]:
        """The questions of the validation split, from the places that `validation` names.

        Raises:
            ValueError: if a file is not what it should be.
        """

    @abstractmethod
    def submission(self, path: Path, given: Mapping[str, str]) -> list[dict[str, Any]]:
        """What the server takes.

        Args:
            path: path of the file `submitted`.
            given: answers by question id as text.

        Raises:
            ValueError: if the file is missing, a line lacks a field, or the server would refuse what it is sent.
        """


def labelled_question(
    question_id: int | str, text: str, image: Path, annotation: Mapping[str, Any], place: str
) -> Question:
    """A question with people's answers.

    Args:
        question_id: id in the file, or the number of the question there.
        text: what the model is asked.
        image: file.
        annotation: has `answers`, each with `answer`, and perhaps `answer_type`.
        place: file and line of it, for errors.

    Raises:
        ValueError: if it lacks the answers.
    """
    answers = tuple(need_text(answer, "answer", place) for answer in need_list(annotation, "answers", place))
    answer_type = need(annotation, "answer_type", str, place, optional=True)
    return Question(question_id, text, (image,), facts={_ANSWERS: answers, "answer_type": answer_type})
