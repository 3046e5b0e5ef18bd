"""Reading files with one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_objects(path: Path, advice: str, torn_end: bool = False) -> list[dict[str, Any]]:
    """The objects of a file; empty lines are skipped.

    Args:
        path: the file.
        advice: what to do about a line that is none, as a main clause.
        torn_end: whether a kill may have cut the last line short; what stands behind the last line break is left out.

    Raises:
        ValueError: if a line is not a JSON object.
        OSError: if the file cannot be read.
    """
    lines = path.read_bytes().split(b"\n")
    objects = []
    for number, line in enumerate(lines[:-1] if torn_end else lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.decode("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); {advice}.") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; {advice}.")
        objects.append(value)
    return objects
