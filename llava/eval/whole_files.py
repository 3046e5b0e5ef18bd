"""Writing a file in one step: whoever is killed meanwhile leaves the old one or the new one."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write a text file in one step; its folder is made if need be.

    Args:
        path: of the file.
        text: all of it.

    Returns:
        the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path


def append_whole(file: FileIO, content: bytes) -> None:
    """Append to a file, on the disk when this returns; what could only be written in part is taken back.

    Args:
        file: open for appending, without a buffer.
        content: of one or several lines.

    Raises:
        OSError: if it cannot be written; names the file, which is as long as before.
    """
    before = os.fstat(file.fileno()).st_size
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), before)
        raise OSError(
            error.errno,
            f"{error.strerror or error}; make room or mend the disk, then run the same command, which goes on from "
            "there",
            str(file.name),
        ) from error
