"""Reading the files of benchmarks, with errors that say what to get and where it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import NotJsonError, as_json, parse_json
from llava.common.json_lines import placed_objects, read_objects
from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.data.images import BadImageError, image_path
from llava.data.media_keys import unread_media
from llava.eval.benchmarks.questions import Question


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
        return parse_json(require(path, benchmark).read_bytes())
    except NotJsonError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from error


def read_json_lines(path: Path, benchmark: str) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line, or of a JSON list; empty lines are skipped.

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
    if not isinstance(record, Mapping):
        raise ValueError(
            f"{place} is {shown(record)}; it must be a JSON object with {name!r}. Download the file again."
        )
    if name not in record:
        raise ValueError(
            f"{place} has no field {name!r}, only {', '.join(record) or 'none'}; download the file again, or add it."
        )
    return record[name]


def need_list(record: Mapping[str, Any], name: str, place: str) -> list[Any]:
    """A field of a record that is a list. Arguments and errors as `need_text`."""
    value = need_field(record, name, place)
    if not isinstance(value, list):
        raise ValueError(f"{place} has the {name} {shown(value)}; it must be a JSON list. Download the file again.")
    return value


def need_text(record: Mapping[str, Any], name: str, place: str) -> str:
    """A field of a record that is text, or a number, which stands for its digits.

    Args:
        record: read from a file.
        name: of the field.
        place: file and line, for the error.

    Raises:
        ValueError: if the record lacks it, or it is something else.
    """
    value = need_field(record, name, place)
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not (number or isinstance(value, str)):
        raise ValueError(f"{place} has the {name} {as_json(value)}; it must be text between quotation marks.")
    return str(value)


def need_id(record: Mapping[str, Any], name: str, place: str) -> int | str:
    """The id of a record: text that is not blank, or a number. Arguments and errors as `need_text`."""
    if not need_text(record, name, place).strip():
        raise ValueError(f"{place} has a blank {name}; give it a number or a name.")
    value: int | str = record[name]
    return value


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
            f"{place} names the file {shown(str(name))}, which does not lie in {str(folder)!r}; download the file "
            "again, or name it relative to that folder."
        ) from error


def read_questions(path: Path, images: Path, benchmark: str, about_text: bool = False) -> list[Question]:
    """The questions of one of LLaVA's question files: `question_id`, `image`, `text`, perhaps `category`.

    Texts are asked as they stand, but for an `<image>` with a line break in front of a question about one image, which
    LLaVA puts there itself. `image` may be a list.

    Args:
        path: JSON lines or a JSON list.
        images: folder that image names are relative to.
        benchmark: name, for errors.
        about_text: whether there may be questions without an image, as in files of one's own.

    Raises:
        ValueError: if the file is missing, a record lacks a field or names no image or other media, a text or
            id is null, or an image does not lie in the folder. Whether images exist is not checked.
    """
    questions = []
    for place, record in placed_objects(require(path, benchmark), "mend the line, or download the file again"):
        if not about_text:
            need_field(record, "image", place)
        text = need_text(record, "text", place)
        if not text.replace(DEFAULT_IMAGE_TOKEN, "").strip():
            raise ValueError(f"{place} has a blank text, which asks nothing; mend the line, or take it out.")
        names = _image_names(record, place)
        if not names and not about_text:
            raise ValueError(f"{place} names no image; download the file again.")
        if not names and DEFAULT_IMAGE_TOKEN in text.replace(WRITTEN_IMAGE_TOKEN, ""):
            raise ValueError(f"{place} holds {DEFAULT_IMAGE_TOKEN} in its text, but names no image; add `image`.")
        questions.append(
            Question(
                question_id=need_id(record, "question_id", place),
                text=text.removeprefix(f"{DEFAULT_IMAGE_TOKEN}\n") if len(names) == 1 else text,
                images=tuple(file_in(images, name, place) for name in names),
                prompt=text,
                facts={key: value for key, value in record.items() if key not in ("question_id", "text")},
            )
        )
    return questions


def _image_names(record: Mapping[str, Any], place: str) -> list[str]:
    """The images that a record names: one, several or none.

    Raises:
        ValueError: if the field is something else, or another field names what would not be shown.
    """
    named = record.get("image")
    names = named if isinstance(named, list) else [] if named is None or named == "" else [named]
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise ValueError(f"{place} has the image {shown(name)}; give the name of a file, or a list of names.")
    names = [str(name) for name in names]
    require_seen(record, names, place)
    return names


def require_seen(record: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """See that a record names no media besides its images; `images` may repeat them.

    Args:
        record: of a question file.
        names: that its field `image` gives.
        place: file and line, for the error.

    Raises:
        ValueError: if another field names what would not be shown.
    """
    again = record.get("images") or []
    repeated = list(names) == (again if isinstance(again, list) else [again])
    unseen = ([] if not again or repeated else ["images"]) + unread_media(record, names)
    if unseen:
        raise ValueError(f"{place} has a field {unseen[0]!r}, which is not read; name its images in `image`.")
