"""JSON files whose content has one known shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from llava.common.atomic_write import write_whole
from llava.eval.benchmarks.reading import read_json

Shape = TypeVar("Shape", bound="list[Any] | dict[str, Any]")


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
        wanted = "list" if shape is list else "object"
        raise ValueError(f"{path} is not a JSON {wanted}; download it again.")
    return value


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON file in one step, in a folder that is made if need be; returns its path."""
    write_whole(path, json.dumps(value))
    return path
