"""Atomic writes, and error sentences for disks that are full or must not be written to.

Whoever is killed while writing, or finds no room, leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".unfinished"
"""Ending of a file that is being written."""
PATIENCE = 10.0
"""Seconds to wait for a reader of a named pipe."""
_FULL = "make room there, or name another place"
_REMEDIES = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("your quota on that disk is used up", _FULL),
    errno.EFBIG: ("it is larger than the file system or this process may write", "name another place"),
    errno.EROFS: ("the file system is read-only", "name another place"),
    errno.EACCES: ("you may not write there", "change the permissions, or name another place"),
    errno.EPERM: ("you may not write there", "change the permissions, or name another place"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "name another place"),
    errno.EISDIR: ("it is a folder", "name a file"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
    errno.ENXIO: ("nobody reads the pipe", "start its reader first, or name a file"),
    errno.EIO: ("the disk reports an error", "check it, or name another place"),
    errno.ESTALE: ("the network drive lost it", "mount it again, or name another place"),
}

_OF_TORCH = ("inline_container.cc", "iostream error", "PytorchStreamWriter")
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class UnwritableError(OSError):
    """Something could not be written; the message is a sentence with path and remedy, `errno` that of the cause."""

    def __init__(self, path: str | Path, cause: OSError) -> None:
        said = cause.strerror or str(cause)
        what, remedy = _REMEDIES.get(cause.errno or 0, ("there is an error", "name another place"))
        super().__init__(f"{path} cannot be written: {what}, {said}; {remedy}.")
        self.errno = cause.errno


@contextlib.contextmanager
def write_errors(path: str | Path) -> Iterator[None]:
    """Make a sentence of what goes wrong while something is written.

    Args:
        path: path of the file or folder.

    Raises:
        UnwritableError: instead of another OSError; names the path.
    """
    try:
        yield
    except (UnwritableError, BrokenPipeError):
        raise
    except OSError as error:
        if not _is_about(error, Path(path)):
            raise
        raise UnwritableError(path, error) from error


@contextlib.contextmanager
def library_write_errors(path: str | Path) -> Iterator[None]:
    """Does what `write_errors` does for what libraries write, whose errors are often no OSError: torch, safetensors.

    Args:
        path: path of the folder that they write into.

    Raises:
        UnwritableError: instead of an error about the disk; names the path.
    """
    with write_errors(path):
        try:
            yield
        except Exception as error:
            code = None if isinstance(error, OSError) else _code_of(str(error))
            if code is None:
                raise
            raise OSError(code, os.strerror(code)) from error


def _code_of(said: str) -> int | None:
    """Number of the system's error that a library's message stems from; None if it is about something else.

    Rust's libraries end in it. Torch's archive says only that bytes are missing, as they are where a disk is full.
    """
    if number := re.search(r"\(os error (\d+)\)", said):
        return int(number[1])
    return errno.ENOSPC if any(words in said for words in _OF_TORCH) else None


def _is_about(error: OSError, path: Path) -> bool:
    """Whether an error stems from writing to a path, not from a file that is read meanwhile."""
    if error.errno in _OF_WRITING:
        return True
    if not isinstance(error.filename, str | Path):
        return False
    places = {path.absolute(), path.resolve()}
    named = Path(error.filename).absolute()
    return any(named in place.parents or str(named).startswith(str(place)) for place in places)


def _open_read(name: str, flags: int) -> int:
    """Open a pipe that somebody reads; without a reader that would wait for ever."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            handle = os.open(name, flags | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            os.set_blocking(handle, True)
            return handle


@contextlib.contextmanager
def whole_file(path: Path, mode: str = "w", sync: bool = False) -> Iterator[IO[Any]]:
    """Open a file that appears under its name when the block ends well; until then the former one stays.

    Args:
        path: the file; its folder is made if need be. A device or a pipe that somebody reads is written directly.
        mode: "w" for UTF-8 text, "wb" for bytes.
        sync: whether it is on the disk, not only in the system's memory, when the block ends.

    Raises:
        UnwritableError: if it cannot be written; nothing is left of it.
    """
    encoding = None if "b" in mode else "utf-8"
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            with open(path, mode, encoding=encoding, opener=_open_read if path.is_fifo() else None) as file:
                yield file
            return
        target = path.resolve()  # a link stays one
        unfinished = target.with_name(target.name + UNFINISHED)
        try:
            with unfinished.open(mode, encoding=encoding) as file:
                yield file
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(unfinished, target)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise


def write_whole(path: Path, text: str) -> Path:
    """Write a text file in one step; its folder is made if need be.

    Args:
        path: path of the file.
        text: all of it.

    Returns:
        the path.

    Raises:
        UnwritableError: if it cannot be written; what was there before stays.
    """
    with whole_file(path) as file:
        file.write(text)
    return path


def append_whole(file: FileIO, content: bytes) -> None:
    """Append to a file, on the disk when this returns; what could only be written in part is taken back.

    Args:
        file: open for appending, without a buffer.
        content: content of one or several lines.

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
