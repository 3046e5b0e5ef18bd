"""The file of results: one JSON object a line, on the disk as soon as it is known."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE_NAME = "gpu_check.jsonl"


@dataclass(frozen=True)
class ResultLog:
    """Appends lines to a file, from this process or several.

    Attributes:
        path: path of the file.
        run: name of the run, in every line: a file may hold several.
        began: Unix time of the run's start; every line says how many seconds after it was written.
    """

    path: Path
    run: str
    began: float

    def add(self, part: str, kind: str, **values: Any) -> None:
        """Write a line and have it on the disk when this returns; where that cannot be done, say so and go on.

        Args:
            part: name of the part of the check.
            kind: `start` or `end` of a part, or what the part found: `row`, `round`, `search`.
            values: JSON values; a NaN or infinite number becomes text.
        """
        line = {"run": self.run, "at": round(time.time() - self.began, 2), "part": part, "kind": kind, **values}
        text = json.dumps(_plain(line), allow_nan=False)
        try:
            _append(self.path, text)
        except OSError as error:
            print(f"gpu_check: {self.path} did not take a result ({error}); it was {text}", file=sys.stderr, flush=True)

    def holds(self, parts: Sequence[str]) -> bool:
        """Whether the file has the end of each of these parts of this run."""
        try:
            lines = read(self.path)
        except OSError:
            return False
        ended = {line.get("part") for line in lines if line.get("run") == self.run and line.get("kind") == "end"}
        return ended >= set(parts)


def place_of(out: Path) -> Path:
    """The file that OUT names: itself, or `gpu_check.jsonl` in it if it is a folder.

    Raises:
        ValueError: if nothing can be written there.
    """
    path = out / FILE_NAME if out.is_dir() else out
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"OUT is {str(out)!r}, but {path} is no regular file; name a file or a folder.")
        if path.is_file() and path.stat().st_size and not path.read_bytes().startswith(b"{"):
            raise ValueError(f"OUT is {str(out)!r}, but {path} holds something else than results; name another file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_short = path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        with path.open("ab") as file:
            file.write(b"\n" if cut_short else b"")  # what a run left that died within a line
    except OSError as error:
        raise ValueError(f"OUT is {str(out)!r}, where nothing can be written: {error}") from error
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a file; one that was cut short by a full disk or a power cut is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _append(path: Path, text: str) -> None:
    """Add a line; one that a full disk cut short stays alone.

    Raises:
        OSError: if not all of it is on the disk.
    """
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        cut_short = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = (b"\n" if cut_short else b"") + text.encode() + b"\n"
        if os.write(handle, data) < len(data):  # one call: a line is there or not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
