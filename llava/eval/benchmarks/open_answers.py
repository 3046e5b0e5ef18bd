"""What VQAv2 and VizWiz share: short answers, ten people's answers where the split has labels, servers where not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import need
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import need_id, need_list, need_text, one_image, read_json_lines, require_some
from llava.eval.scoring.m4c import vqa_accuracy
from llava.eval.scoring.scores import Scores, per_cent
from llava.eval.scoring.vqa_normalise import evalai_answer

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""What LLaVA puts behind a question that has a short answer."""

_ANSWERS = "people"


def labelled_question(
    question_id: int | str, text: str, image: Path, annotation: Mapping[str, Any], place: str
) -> Question:
    """A question with people's answers.

    Args:
        question_id: of the file, or its number there.
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


def open_scores(answers: Sequence[Answer], server: str) -> Scores:
    """Soft accuracy in per cent, in all and by type of answer; no headline where the questions have no labels.

    Args:
        answers: at least one.
        server: who scores answers without labels, as a noun.

    Raises:
        ValueError: if a question has not ten people's answers.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        facts = answer.question.facts
        if _ANSWERS not in facts:
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
    note = (
        "Validation split, scored here with the official formula; papers print what the server says of the test split."
    )
    return Scores(values["accuracy"], values, (note,))


def has_labels(answers: Sequence[Answer]) -> bool:
    """Whether the questions carry people's answers."""
    return any(_ANSWERS in answer.question.facts for answer in answers)


def texts_by_id(answers: Sequence[Answer]) -> dict[str, str]:
    """Answers by question id as text."""
    return {str(answer.question.question_id): answer.text for answer in answers}


def vqav2_submission(path: Path, given: Mapping[str, str], benchmark: str) -> list[dict[str, Any]]:
    """What VQAv2's server takes: every question of the whole test split, with an empty answer where there is none.

    Args:
        path: LLaVA's `llava_vqav2_mscoco_test2015.jsonl`.
        given: answers by question id as text.
        benchmark: name, for errors.

    Raises:
        ValueError: if the file is missing or a line has no question_id.
    """
    submission = []
    for number, record in enumerate(require_some(read_json_lines(path, benchmark), path), start=1):
        question_id = need_id(record, "question_id", f"{path}, line {number}")
        text = given.get(str(question_id))
        submission.append({"question_id": question_id, "answer": "" if text is None else evalai_answer(text)})
    return submission


def vizwiz_submission(path: Path, given: Mapping[str, str], benchmark: str) -> list[dict[str, Any]]:
    """What VizWiz' server takes: an answer for the image of every question.

    Args:
        path: LLaVA's `llava_test.jsonl`.
        given: answers by question id as text.
        benchmark: name, for errors.

    Raises:
        ValueError: if the file is missing, a line lacks a field, or a question has no answer.
    """
    submission, missing = [], []
    for number, record in enumerate(require_some(read_json_lines(path, benchmark), path), start=1):
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
