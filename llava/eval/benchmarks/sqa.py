"""ScienceQA: questions with answer options, about half of them with an image.

Files under `scienceqa/`, as LLaVA has them: `llava_test_CQM-A.json` (questions), `problems.json` (right answers),
`pid_splits.json` (which problems are the test split) and `images/test/`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.eval.benchmarks.base import Benchmark
from llava.eval.benchmarks.questions import Answer, Question
from llava.eval.benchmarks.reading import (
    file_in,
    image_names,
    need_field,
    need_id,
    need_list,
    need_question,
    read_json,
    read_json_as,
    require_fields,
    require_some,
)
from llava.eval.scoring.scores import Scores, per_cent

LETTER_PROMPT = "Answer with the option's letter from the given choices directly."
"""What LLaVA's `--single-pred-prompt` puts behind a question."""

OPTIONS = ("A", "B", "C", "D", "E")
FAILED = "FAILED"
_FOLDER = "scienceqa"
_SPLIT = "test"
_STATEMENT = re.compile(r"The answer is ([A-Z]).")  # any character may stand at the end, as in LLaVA


class ScienceQA(Benchmark):
    """Accuracy on the questions with an image (SQA-I), and on all."""

    name = "sqa"
    title = "SQA-I"
    max_new_tokens = 1024

    def questions(self, root: Path) -> list[Question]:
        """See `Benchmark.questions`; each ends with the request for a letter."""
        folder = root / _FOLDER
        path = folder / "llava_test_CQM-A.json"
        records = read_json_as(list, path, self.name)
        problems = read_json(folder / "problems.json", self.name) if (folder / "problems.json").is_file() else {}
        questions = science_questions(records, folder / "images" / "test", str(path))
        return [replace(question, facts=_offered(problems, question.question_id)) for question in questions]

    def score(self, root: Path, answers: Sequence[Answer]) -> Scores:
        """See `Benchmark.score`; answers to problems of other splits do not count."""
        folder = root / _FOLDER
        problems = read_problems(folder, _SPLIT, self.name)
        verdicts: list[tuple[bool, bool]] = []
        for answer in answers:
            problem = problems.get(str(answer.question.question_id))
            if problem is not None:
                chosen = option_index(read_letter(answer.text, OPTIONS), len(problem["choices"]), OPTIONS)
                verdicts.append((chosen == problem["answer"], bool(answer.question.images)))
        if not verdicts:
            raise ValueError(
                f"None of the answered questions is in the split {_SPLIT!r} of {folder / 'pid_splits.json'}; the "
                "question file and this one do not belong together, download them again."
            )
        values = {"accuracy": per_cent([right for right, _ in verdicts])}
        with_image = [right for right, has_image in verdicts if has_image]
        if not with_image:
            return Scores(None, values, ("No question with an image was answered, so there is no SQA-I.",))
        values["image_accuracy"] = per_cent(with_image)
        text_only = [right for right, has_image in verdicts if not has_image]
        if text_only:
            values["text_accuracy"] = per_cent(text_only)
        return Scores(values["image_accuracy"], values)

    def reads(self, answer: Answer) -> bool:
        """See `Benchmark.reads`; a letter that the question does not offer says nothing."""
        return option_index(read_letter(answer.text), answer.question.facts.get("choices", len(OPTIONS))) >= 0


def science_questions(
    records: Sequence[Any], images: Path, place: str, suffix: str | None = LETTER_PROMPT
) -> list[Question]:
    """Questions from the records of LLaVA's ScienceQA files.

    Args:
        records: objects with `id`, `conversations` and, where there is an image, `image`.
        images: folder that image names are relative to.
        place: the file, for errors.
        suffix: put behind each question on a line of its own; None for nothing.

    Raises:
        ValueError: if there are none, a record lacks something or names media besides `image`, or a field is of
            another type.
    """
    questions = []
    for number, record in enumerate(records, start=1):
        where = f"{place}, question {number}"
        if not isinstance(record, Mapping):
            raise ValueError(f"{where} is not a JSON object; download the file again.")
        turns = need_field(record, "conversations", where)
        if not (isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "value" in turns[0]):
            raise ValueError(f"{where} has no text at conversations[0].value; download the file again.")
        asked = need_question(turns[0], "value", f"{where}, conversations[0]")
        asked = asked.replace(WRITTEN_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN)
        text = asked.replace(DEFAULT_IMAGE_TOKEN, "").strip().replace(LITERAL_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN)
        text = f"{text}\n{suffix}" if suffix else text
        require_fields(record, where)
        names = image_names(record, where)
        if not names and DEFAULT_IMAGE_TOKEN in asked:
            raise ValueError(f"{where} holds {DEFAULT_IMAGE_TOKEN} in its text, but names no image; add `image`.")
        questions.append(
            Question(
                question_id=need_id(record, "id", where),
                text=text,
                images=tuple(file_in(images, name, where) for name in names),
                prompt=f"{DEFAULT_IMAGE_TOKEN}\n" * len(names) + text,
            )
        )
    return require_some(questions, Path(place))


def read_problems(folder: Path, split: str, benchmark: str) -> dict[str, dict[str, Any]]:
    """The problems of a split by id, each with `choices` and the number of the right one as `answer`.

    Args:
        folder: holds `problems.json` and `pid_splits.json`.
        split: key of `pid_splits.json`.
        benchmark: name, for errors.

    Raises:
        ValueError: if a file is missing, has no such split, or lacks a problem of it.
    """
    splits, problems = (read_json_as(dict, folder / name, benchmark) for name in ("pid_splits.json", "problems.json"))
    if split not in splits:
        raise ValueError(f"{folder / 'pid_splits.json'} has no split {split!r}; it has {', '.join(splits)}.")
    chosen = {}
    for number in map(str, need_list(splits, split, str(folder / "pid_splits.json"))):
        place = f"{folder / 'problems.json'}, problem {shown(number)[1:-1]}"
        if number not in problems:
            raise ValueError(f"{place} is missing, though {folder / 'pid_splits.json'} lists it; download both again.")
        problem = problems[number]
        choices, answer = need_list(problem, "choices", place), need_field(problem, "answer", place)
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
            raise ValueError(
                f"{place} has the answer {shown(answer)}, but {len(choices)} choices; download the file again."
            )
        chosen[number] = problem
    if not chosen:
        raise ValueError(f"{folder / 'pid_splits.json'} lists no problem in the split {split!r}; download it again.")
    return chosen


def read_letter(text: str, options: Sequence[str] = OPTIONS) -> str:
    """The option that an answer names, or `FAILED`.

    An answer names an option if it is its letter, if it begins with the letter, a full stop and a space, or if it says
    "The answer is", a capital letter and one more character, such as a full stop, exactly once. Such a letter need not
    be one of the options.

    Args:
        text: what the model said.
        options: letters.
    """
    if text in options:
        return text
    if text[:1] in options and text[1:3] == ". ":
        return text[0]
    stated: list[str] = _STATEMENT.findall(text)
    return stated[0] if len(stated) == 1 else FAILED


def option_index(letter: str, count: int, options: Sequence[str] = OPTIONS) -> int:
    """Number of an option, from 0; -1 if the question has none of that letter.

    Args:
        letter: what `read_letter` gives.
        count: options that the question has.
        options: letters.
    """
    offered = list(options[:count])
    return offered.index(letter) if letter in offered else -1


def _offered(problems: Mapping[str, Any], question_id: int | str) -> dict[str, int]:
    """How many choices a question has, as far as `problems.json` is there to say so."""
    problem = problems.get(str(question_id)) if isinstance(problems, Mapping) else None
    choices = problem.get("choices") if isinstance(problem, Mapping) else None
    return {"choices": len(choices)} if isinstance(choices, list) else {}
