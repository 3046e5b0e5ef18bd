"""Files with one JSON value a line: reading objects, writing whole, appending."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from llava.common.atomic_write import append_whole, whole_file
from llava.common.json_files import NotJsonError, parse_json
from llava.common.outside_files import read_bytes

LARGEST = 4 << 30
"""Bytes of the largest file that is read whole."""


def placed_objects(path: Path, advice: str, torn_end: bool = False) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place for errors, such as "questions.jsonl, line 7".

    Keys that come twice in an object, numbers that are not finite and halves of surrogate pairs are refused.

    A byte order mark in front and empty lines are skipped; line breaks may be those of Windows.

    Args:
        path: the file.
        advice: what to do about a line that is none, as a main clause.
        torn_end: whether a kill may have cut the last line short; what stands behind the last line break is left out
            unless it is a whole object, and the file is no list.

    Raises:
        ValueError: if a line is not a JSON object, or the file is no regular one or cannot be read.
    """
    content = read_bytes(path, LARGEST).removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"[") and not torn_end:
        values = _parsed(content, str(path), advice)
        places = [f"{path}, entry {number}" for number in range(1, len(values) + 1)]
    else:
        lines = content.split(b"\n")
        numbered = [(f"{path}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
        if torn_end and lines[-1].strip() and not _is_object(lines[-1]):
            numbered.pop()
        places = [place for place, _ in numbered]
        values = [_parsed(line, place, advice) for place, line in numbered]
    for place, value in zip(places, values, strict=True):
        if not isinstance(value, dict):
            raise ValueError(f"{place} is not a JSON object; {advice}.")
    return list(zip(places, values, strict=True))


def read_objects(path: Path, advice: str, torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects of `placed_objects`, without their places."""
    return [value for _, value in placed_objects(path, advice, torn_end)]


def write_lines(path: Path, values: Iterable[Any], sync: bool = False) -> Path:
    """Write values, a line each, in one step; the folder is made if need be.

    Args:
        path: path of the file.
        values: that JSON can express, taken one by one.
        sync: as in `whole_file`.

    Returns:
        the path.

    Raises:
        llava.common.atomic_write.UnwritableError: if it cannot be written; what was there before stays.
    """
    with whole_file(path, sync=sync) as file:
        file.writelines(json.dumps(value) + "\n" for value in values)
    return path


def append_lines(file: FileIO, values: Iterable[Any]) -> None:
    """Append values, a line each; they are on the disk when this returns.

    Args:
        file: open for appending, without a buffer.
        values: that JSON can express.

    Raises:
        OSError: as `append_whole`.
    """
    append_whole(file, "".join(json.dumps(value) + "\n" for value in values).encode())


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except NotJsonError:
        return False


def _parsed(text: bytes, place: str, advice: str) -> Any:
    try:
        return parse_json(text, strict=True)
    except NotJsonError as error:
        raise ValueError(f"{place} is not JSON ({error}); {advice}.") from error
