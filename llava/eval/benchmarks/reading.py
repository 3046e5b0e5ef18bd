"""Reading the files of benchmarks, with errors that say what to get and where it goes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.images import BadImageError, image_path
from llava.eval.json_lines import read_objects
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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from error


def read_json_lines(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; empty lines are skipped.

    Raises:
        ValueError: if it is missing, or a line is not a JSON object.
    """
    return read_objects(require(path, benchmark), "download the file again")


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


def file_in(folder: Path, name: Any, place: str) -> Path:
    """A file that a record names, confined to its folder. Whether it exists is not checked.

    Args:
        folder: that the name is relative to.
        name: of an image or a video.
        place: file and line of the record, for the error.

    Raises:
        ValueError: if the name leads out of the folder.
    """
    try:
        return image_path(folder, str(name))
    except BadImageError as error:
        raise ValueError(
            f"{place} names the file {str(name)!r}, which does not lie in {str(folder)!r}; download the file again, or "
            "name it relative to that folder."
        ) from error


def read_questions(path: Path, images: Path | None, benchmark: str) -> list[Question]:
    """The questions of one of LLaVA's question files: `question_id`, `image`, `text`, perhaps `category`.

    Texts are asked as they stand, but for an `<image>` with a line break in front, which LLaVA puts there itself.

    Args:
        path: JSON lines.
        images: folder that image names are relative to; None for questions about text.
        benchmark: name, for errors.

    Raises:
        ValueError: if the file is missing, a line lacks a field, or an image does not lie in the folder. Whether images
            exist is not checked.
    """
    questions = []
    for number, record in enumerate(read_json_lines(path, benchmark), start=1):
        place = f"{path}, line {number}"
        name = record.get("image") if images is None else need_field(record, "image", place)
        questions.append(
            Question(
                question_id=need_field(record, "question_id", place),
                text=str(need_field(record, "text", place)).removeprefix(f"{DEFAULT_IMAGE_TOKEN}\n"),
                images=(file_in(images, name, place),) if images is not None and name else (),
                prompt=str(record["text"]),
                facts={key: value for key, value in record.items() if key not in ("question_id", "text")},
            )
        )
    return questions
