"""A question of a benchmark and the answer a model gave: what runner, benchmarks and scorers pass one another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava.common.json_files import as_json
from llava.common.json_lines import read_objects

Picture = Path | bytes
"""An image: a file, or the content of one (MMBench carries its images inside the question file)."""

AnswerKey = tuple[str, str, int]
"""What answers belong to: question id, prompt, and how many equal ones stand before it in the file."""


@dataclass(frozen=True)
class Question:
    """One question as a benchmark asks it.

    Attributes:
        question_id: as it stands in the question file; several questions may share one (MME asks twice an image).
        text: what the model is asked, without `<image>` and without conversation template.
        images: shown in front of the text, in this order; empty for a question about text alone.
        video: file or folder of frames, for questions about a video; `images` is empty then.
        prompt: the `prompt` field of the answer file, where it differs from `text`.
        fields: what an answer line of this benchmark carries besides LLaVA's own fields, e.g. MMBench's `round_id`.
        facts: what scoring needs: the right answer, a category.
    """

    question_id: int | str
    text: str
    images: tuple[Picture, ...] = ()
    video: Path | None = None
    prompt: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recorded_prompt(self) -> str:
        """The `prompt` field of its answer line."""
        return self.text if self.prompt is None else self.prompt


def question_keys(questions: Iterable[Question]) -> list[AnswerKey]:
    """The key of each question, in order; no two are equal."""
    return list(_numbered((str(question.question_id), question.recorded_prompt) for question in questions))


def answer_keys(lines: Iterable[Mapping[str, Any]]) -> list[AnswerKey]:
    """The key of each answer line, in order; no two are equal.

    Raises:
        ValueError: if a line has no question_id or no prompt.
    """
    pairs = []
    for number, line in enumerate(lines, start=1):
        if "question_id" not in line or "prompt" not in line:
            raise ValueError(
                f"Answer {number} has the fields {', '.join(line) or 'none'}; an answer line needs question_id, prompt "
                "and text. Remove the line or the file."
            )
        pairs.append((str(line["question_id"]), str(line["prompt"])))
    return list(_numbered(pairs))


def _numbered(pairs: Iterable[tuple[str, str]]) -> Iterator[AnswerKey]:
    seen: Counter[tuple[str, str]] = Counter()
    for pair in pairs:
        yield (*pair, seen[pair])
        seen[pair] += 1


def answer_line(question: Question, text: str, answer_id: str, model_id: str) -> dict[str, Any]:
    """One line of an answer file in LLaVA's format.

    Args:
        question: that was asked.
        text: what the model said.
        answer_id: unique name of the answer.
        model_id: name of the model.
    """
    return {
        "question_id": question.question_id,
        "prompt": question.recorded_prompt,
        "text": text.strip(),
        "answer_id": answer_id,
        "model_id": model_id,
        "metadata": {},
    } | dict(question.fields)


@dataclass(frozen=True)
class Answered:
    """A question with the text that a model answered."""

    question: Question
    text: str


def read_answer_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of an answer file; a text of null is empty.

    Raises:
        ValueError: if a line is not a JSON object, or its id, prompt or text is neither text nor a number.
    """
    lines = [with_text(line) for line in read_objects(path, "remove the line or the file")]
    for number, line in enumerate(lines, start=1):
        check_answer(line, f"{path}, answer {number}")
    return lines


def check_answer(line: Mapping[str, Any], place: str) -> None:
    """See that the fields of an answer line that are there hold text, or a number, which stands for its digits.

    Args:
        line: of an answer file.
        place: file and number of the line, for the error.

    Raises:
        ValueError: if one holds something else.
    """
    for name, kinds in (("question_id", (str, int, float)), ("prompt", (str,)), ("text", (str, int, float))):
        value = line.get(name, "")
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ValueError(f"{place} has the {name} {as_json(value)}; it must be text. Remove the line or the file.")
    if not isinstance(line.get("answer_id"), str | int | float | None):
        said = as_json(line["answer_id"])
        raise ValueError(f"{place} has the answer_id {said}; it must be text. Remove the line or the file.")


def with_text(line: dict[str, Any]) -> dict[str, Any]:
    """An answer line whose text, if it is null, is empty: no model said "None"."""
    return line | {"text": ""} if "text" in line and line["text"] is None else line
