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
from llava.data.mixture_files import ALL, Source, named_sources


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
        path: file in a format of `llava.data.json_stream`.
        image_folder: where the image names of its records start.
        weight, seed: how often an epoch sees a record of it, and the seed of the draw that a fraction needs.
        objects: its records as parsed, and `Unreadable` for lines that are not JSON.
        video_folder: where names of their videos start.
        part: share of the records that an epoch sees, see `llava.data.mixture_files`.
    """

    path: Path
    image_folder: str
    weight: float = 1.0
    seed: int = 0
    objects: list[Any] = field(default_factory=list, repr=False)
    video_folder: str = "."
    part: str = ALL


def read_sources(
    paths: Sequence[str | Path], image_folder: str, limit: int | None = None, video_folder: str | None = None
) -> list[DataFile]:
    """Read all data files.

    Args:
        paths: JSON or JSON lines, or YAML mixtures of them; see `llava.data.mixture_files`.
        image_folder: image folder of files that are named directly, or that a mixture gives none.
        limit: keep only so many records, from the front.
        video_folder: likewise of videos; None for the image folder.

    Raises:
        SourceError: if a file is missing, holds no record, or is in neither format.
    """
    try:
        named = named_sources(paths)
    except ValueError as error:
        raise SourceError(str(error)) from error
    sources: list[DataFile] = []
    left = limit
    for source in named:
        place = _place(source, image_folder, video_folder or image_folder)
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


def _place(source: Source, image_folder: str, video_folder: str) -> DataFile:
    """A source of a command line, not read yet."""
    return DataFile(
        source.path,
        source.image_folder or image_folder,
        source.weight,
        source.seed or 0,
        video_folder=source.video_folder or video_folder,
        part=source.part,
    )
