"""Reading answer files for commands that convert or score them without the questions they answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llava.eval.benchmarks.questions import answer_keys, read_answer_lines


def answers_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of an answer file by question id as text; of several with the same id the last one.

    Raises:
        ValueError: if the file is missing, or a line lacks question_id, prompt or text.
    """
    if not path.is_file():
        raise ValueError(
            f"There is no answer file {str(path)!r}; give the file that the model's answers were written to."
        )
    lines = read_answer_lines(path)
    try:
        answer_keys(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if "text" not in line:
            raise ValueError(f"{path}, answer {number} has no text; remove the line or answer the question again.")
    return {str(line["question_id"]): line for line in lines}
