"""Reads data files unchecked, faulty records included, and writes the good records of one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llava.common.atomic_write import whole_file
from llava.common.json_files import NotJsonError
from llava.data.json_stream import is_parquet, iterate_json, numbered_lines, open_text, require_data_file
from llava.data.mixture import is_mixture, read_mixture


class SourceError(ValueError):
    """A data file that cannot be read at all; the message says what to change."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a line that is not JSON."""

    reason: str


@dataclass(frozen=True)
class DataFile:
    """One data file.

    Attributes:
        path: in a format of `llava.data.json_stream`.
        image_folder: where the image names of its records start.
        weight, seed: how often an epoch sees a record of it, and the seed of the draw that a fraction needs.
        objects: its records as parsed, and `Unreadable` for lines that are not JSON.
    """

    path: Path
    image_folder: str
    weight: float = 1.0
    seed: int = 0
    objects: list[Any] = field(default_factory=list, repr=False)


def read_sources(paths: Sequence[str | Path], image_folder: str, limit: int | None = None) -> list[DataFile]:
    """Read all data files.

    Args:
        paths: JSON or JSON lines, or a YAML mixture of them, whose paths start at the YAML file's folder.
        image_folder: image folder of files that are named directly, or that a mixture gives none.
        limit: keep only so many records, from the front.

    Raises:
        SourceError: if a file is missing, holds no record, or is in neither format.
    """
    sources: list[DataFile] = []
    left = limit
    for place in (place for path in paths for place in _places(Path(path), image_folder)):
        objects = read_objects(place.path)[:left]
        left = None if left is None else left - len(objects)
        sources.append(replace(place, objects=objects))
    return sources


def read_objects(path: Path) -> list[Any]:
    """The records of a data file, unchecked; a line that is not JSON becomes `Unreadable`.

    Raises:
        SourceError: as `read_sources`.
    """
    try:
        require_data_file(path, "check --data-path")
        whole = is_parquet(path) or _begins_a_list(path)
        objects = list(iterate_json(path)) if whole else _read_lines(path)
    except ValueError as error:
        raise SourceError(str(error)) from error
    if not objects:
        raise SourceError(f"{path} holds no records.")
    if all(isinstance(data, Unreadable) for data in objects):
        raise SourceError(f"{path} is neither a JSON list nor JSON lines: {objects[0].reason}")
    return objects


def write_clean(path: Path, objects: Iterable[Any]) -> int:
    """Write records, unchanged and in order, in one step: the file appears whole or not at all.

    Dates and the like, which only a Parquet table has, become text, and its numbers that are not finite null.

    Args:
        path: JSON lines if it ends in `.jsonl`, otherwise a JSON list.
        objects: parsed records.

    Returns:
        How many were written.
    """
    lines = path.suffix == ".jsonl"
    count = 0
    with whole_file(path, sync=True) as file:
        file.write("" if lines else "[\n")
        for count, data in enumerate(objects, 1):
            file.write(("" if lines or count == 1 else ",\n") + _as_json(data) + ("\n" if lines else ""))
        file.write("" if lines else "\n]\n")
    return count


def _as_json(data: Any) -> str:
    try:
        return json.dumps(data, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(data), default=str, allow_nan=False)


def _without_nan(value: Any) -> Any:
    """A value with null in place of numbers that are not finite, which Parquet has and JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list | tuple) else value


def _begins_a_list(path: Path) -> bool:
    with open_text(path) as file:
        return file.read(4096).lstrip().startswith("[")


def _read_lines(path: Path) -> list[Any]:
    with open_text(path) as file:
        return [
            Unreadable(f"line {number}: {value}") if isinstance(value, NotJsonError) else value
            for number, value in numbered_lines(file)
        ]


def _places(path: Path, image_folder: str) -> list[DataFile]:
    """The data files that a path stands for, not read yet."""
    if not is_mixture(path):
        return [DataFile(path, image_folder)]
    try:
        entries, seed = read_mixture(path)
    except ValueError as error:
        raise SourceError(str(error)) from error
    return [DataFile(entry.path, entry.image_folder or image_folder, entry.weight, seed) for entry in entries]
