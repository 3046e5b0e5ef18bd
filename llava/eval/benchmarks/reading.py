"""Reading the files of benchmarks, with errors that say what to get and where it goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any, TypeVar

from llava.common.json_files import NotJsonError, as_json, parse_json
from llava.common.json_lines import LARGEST, placed_objects, read_objects
from llava.common.outside_files import read_bytes
from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, WRITTEN_IMAGE_TOKEN
from llava.data.images import BadImageError, image_path
from llava.data.media_keys import unread_media
from llava.eval.benchmarks.questions import Question
from llava.inference.question_text import check_question, fault_in

Some = TypeVar("Some", bound=Sized)
Shape = TypeVar("Shape", bound="list[Any] | dict[str, Any]")


def require(path: Path, benchmark: str) -> Path:
    """The path, if it is there.

    Raises:
        ValueError: if not, or if it is neither a file nor a folder.
    """
    if not path.exists():
        raise ValueError(
            f"{path} is missing. `python -m llava.eval.data --benchmarks {benchmark}` says where it comes from and "
            "where it goes."
        )
    if not (path.is_file() or path.is_dir()):  # to read a pipe would wait for its writer
        raise ValueError(f"{path} is a pipe, socket or device; give a regular file.")
    return path


def read_json(path: Path, benchmark: str) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: if it is missing or not JSON, an object in it holds a key twice, a number is not finite, or a text
            holds half of a surrogate pair.
    """
    try:
        return parse_json(read_bytes(require(path, benchmark), LARGEST), strict=True)
    except NotJsonError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again.") from error


def require_some(questions: Some, path: Path) -> Some:
    """The questions of a file, if there are any.

    Raises:
        ValueError: if not.
    """
    if not len(questions):
        raise ValueError(f"{path} holds no question, so there is nothing to answer; get it anew, or give another.")
    return questions


def read_json_as(shape: type[Shape], path: Path, benchmark: str) -> Shape:
    """The content of a JSON file.

    Args:
        shape: `list` or `dict`, what it must be.
        path: the file.
        benchmark: name, for errors.

    Raises:
        ValueError: if it is missing, not JSON, or something else.
    """
    value = read_json(path, benchmark)
    if not isinstance(value, shape):
        expected = "list" if shape is list else "object"
        raise ValueError(f"{path} is not a JSON {expected}; download it again.")
    return value


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
        name: name of the field.
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
    """A field of a record that is text, or a number, which stands for its digits. Arguments as `need_field`.

    Raises:
        ValueError: if the record lacks it, or it is something else.
    """
    value = need_field(record, name, place)
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    if isinstance(value, bool) or not (number or isinstance(value, str)):
        raise ValueError(
            f"{place} has the {name} {as_json(value)}; it must be text between quotation marks, or a number."
        )
    return str(value)


def need_id(record: Mapping[str, Any], name: str, place: str) -> int | str:
    """The id of a record: text that is not blank, or a number. Arguments and errors as `need_text`."""
    text = need_text(record, name, place)
    if not text.strip():
        raise ValueError(f"{place} has a blank {name}; give it a number or a name.")
    require_characters(text, name, place)
    value: int | str = record[name]
    return value


def need_question(record: Mapping[str, Any], name: str, place: str) -> str:
    """The text of a record that a model is asked. Arguments as `need_text`.

    Raises:
        ValueError: if the record lacks it, or it is no text, blank, or such as `check_question` refuses.
    """
    text = need_field(record, name, place)
    if not isinstance(text, str):
        raise ValueError(f"{place} has the {name} {as_json(text)}; it must be text between quotation marks.")
    check_question(text, f"{place} has a {name} that")
    return text


def require_characters(text: str, name: str, place: str) -> None:
    """Refuse what is no text in an id, a category or a file's name: NUL, control characters, halves of pairs.

    Args:
        text: text of the field.
        name: name of the field.
        place: file and line, for the error.

    Raises:
        ValueError: if it holds one.
    """
    fault = fault_in(text)
    if fault is not None:
        raise ValueError(f"{place} has the {name} {shown(text, 60)}, which {fault}.")


def require_fields(record: Mapping[str, Any], place: str) -> None:
    """See that what a question file may say about a question is of its type: a `category`, and `options`.

    Args:
        record: record of the file.
        place: file and line, for the error.

    Raises:
        ValueError: if one is something else.
    """
    category = record.get("category")
    if isinstance(category, bool) or not isinstance(category, str | int | None):
        raise ValueError(f"{place} has the category {as_json(category)}; it must be text between quotation marks.")
    require_characters(str(category), "category", place)
    options = record.get("options")
    texts = list(options.values()) if isinstance(options, dict) else options
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise ValueError(f"{place} has the options {as_json(options)}; they must be a list of texts.")
    for text in texts or ():
        require_characters(text, "option", place)


def file_in(folder: Path, name: Any, place: str) -> Path:
    """A file that a record names, confined to its folder. Whether it exists is not checked.

    Args:
        folder: that the name is relative to.
        name: name of an image or a video.
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
        ValueError: if the file is missing or holds no question, a record lacks a field or names no image or other
            media, a field is of another type or holds what `llava.inference.question_text` refuses, or an image does
            not lie in the folder. Whether images exist is not checked.
    """
    questions = []
    for place, record in placed_objects(require(path, benchmark), "mend the line, or download the file again"):
        if not about_text:
            need_field(record, "image", place)
        text = need_question(record, "text", place)
        require_fields(record, place)
        names = image_names(record, place)
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
    return require_some(questions, path)


def image_names(record: Mapping[str, Any], place: str) -> list[str]:
    """The images that a record names: one, several or none.

    Raises:
        ValueError: if the field is something else, or another field names what would not be shown.
    """
    named = record.get("image")
    names = named if isinstance(named, list) else [] if named is None or named == "" else [named]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(
                f"{place} has the image {as_json(name)}; give the name of a file between quotation marks, or a list of "
                "names."
            )
        require_characters(name, "image", place)
    again = record.get("images") or []  # may repeat them
    repeated = names == (again if isinstance(again, list) else [again])
    unseen = ([] if not again or repeated else ["images"]) + unread_media(record, names)
    if unseen:
        raise ValueError(f"{place} has a field {unseen[0]!r}, which is not read; name its images in `image`.")
    return names


def one_image(record: Mapping[str, Any], place: str) -> str:
    """The one image that a record names. Arguments as `need_text`.

    Raises:
        ValueError: if it names none or several, or the field is something else.
    """
    need_field(record, "image", place)
    names = image_names(record, place)
    if len(names) != 1:
        raise ValueError(f"{place} names {len(names)} images; name one as `image`.")
    return names[0]
