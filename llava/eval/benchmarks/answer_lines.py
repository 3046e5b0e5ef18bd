"""The lines of an answer file in LLaVA's format: what one holds, and reading them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava.common.json_files import as_json, need
from llava.common.json_lines import read_objects
from llava.eval.benchmarks.questions import AnswerKey, Question, numbered

_ADVICE = "give the file that the model's answers were written to."


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
    return list(numbered(pairs))


def read_answer_lines(path: Path, advice: str | None = None) -> list[dict[str, Any]]:
    """The lines of an answer file; a text of null is empty.

    Args:
        path: path of the file.
        advice: what to do where there is no file, or none in it, as a sentence from its second part on.

    Raises:
        ValueError: if the file is missing or holds none, a line is not a JSON object, or a field of it is of another
            type.
    """
    if not path.is_file():
        raise ValueError(f"There is no answer file {str(path)!r}; {advice or _ADVICE}")
    lines = [with_text(line) for line in read_objects(path, "remove the line or the file")]
    if not lines:
        raise ValueError(f"{path} holds no answers; {advice or f'it answers no question, so {_ADVICE}'}")
    for number, line in enumerate(lines, start=1):
        check_answer(line, f"{path}, answer {number}")
    return lines


def check_answer(line: Mapping[str, Any], place: str) -> None:
    """See that the fields of an answer line that are there hold text, or a number, which stands for its digits.

    Args:
        line: line of an answer file.
        place: file and number of the line, for the error.

    Raises:
        ValueError: if one holds something else.
    """
    text_or_number = str | int | float
    kinds = {"question_id": text_or_number, "prompt": str, "text": text_or_number, "answer_id": text_or_number | None}
    for name, kind in kinds.items():
        value = line.get(name, "")
        if isinstance(value, bool) or not isinstance(value, kind):
            raise ValueError(f"{place} has the {name} {as_json(value)}; it must be text. Remove the line or the file.")
    metadata = line.get("metadata")
    if metadata is not None:
        need({"metadata": metadata}, "metadata", dict, place)
        for name in ("visual_tokens", "seconds"):
            need(metadata, name, float, f"{place}: metadata", optional=True)


def with_text(line: dict[str, Any]) -> dict[str, Any]:
    """An answer line whose text, if it is null, is empty: no model said "None"."""
    return line | {"text": ""} if "text" in line and line["text"] is None else line


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an answer file, each with an answer.

    Raises:
        ValueError: if the file is missing, or a line lacks question_id, prompt or text.
    """
    lines = read_answer_lines(path)
    try:
        answer_keys(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if "text" not in line:
            raise ValueError(f"{path}, answer {number} has no text; remove the line or answer the question again.")
    return lines


def answers_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The answers of `read_answers`, by question id as text; of several with the same id the last one."""
    return {str(line["question_id"]): line for line in read_answers(path)}
