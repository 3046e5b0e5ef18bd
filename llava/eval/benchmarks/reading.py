"""Reading the files of benchmarks, with errors that say what to get and where it goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.questions import Question


def require(path: Path, benchmark: str) -> Path:
    """The path, if it is there.

    Raises:
        ValueError: if not.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is missing. `python -m llava.eval.data --benchmarks {benchmark}` says where it comes from and "
            "where it goes."
        )
    return path


def read_json(path: Path, benchmark: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is missing or not JSON.
    """
    try:
        return json.loads(require(path, benchmark).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from error


def read_json_lines(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped.

    Raises:
        ValueError: if it is missing, or a line is not a JSON object.
    """
    records = []
    for number, line in enumerate(require(path, benchmark).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); download the file again.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; download the file again.")
        records.append(record)
    return records


def need_field(record: Mapping[str, Any], name: str, place: str) -> Any:
    """A field of a record.

    Args:
        record: read from a file.
        name: of the field.
        place: file and line, for the error.

    Raises:
        ValueError: if the record lacks it.
    """
    if name not in record:
        raise ValueError(f"{place} has no field {name!r}, only {', '.join(record) or 'none'}; download the file again.")
    return record[name]


def read_questions(path: Path, images: Path | None, benchmark: str) -> list[Question]:
    """The questions of one of LLaVA's question files: `question_id`, `image`, `text`, perhaps `category`.

    Args:
        path: JSON lines.
        images: folder that image names are relative to; None for questions about text.
        benchmark: name, for errors.

    Raises:
        ValueError: if the file is missing or a line lacks a field. Whether images exist is not checked.
    """
    questions = []
    for number, record in enumerate(read_json_lines(path, benchmark), start=1):
        place = f"{path}, line {number}"
        name = record.get("image") if images is None else need_field(record, "image", place)
        questions.append(
            Question(
                question_id=need_field(record, "question_id", place),
                text=str(need_field(record, "text", place)).replace(DEFAULT_IMAGE_TOKEN, "").strip(),
                images=(images / str(name),) if images is not None and name else (),
                prompt=str(record["text"]),
                facts={key: value for key, value in record.items() if key not in ("question_id", "text")},
            )
        )
    return questions
