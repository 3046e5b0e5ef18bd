"""Reading a configuration file whole: a regular file of bounded size that holds UTF-8 text, or a sentence about it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

LARGEST_CONFIGURATION = 1 << 20
"""Bytes of the largest file that is read as a configuration; those of this project have at most a few thousand."""


def read_text(path: str | Path, largest: int = LARGEST_CONFIGURATION) -> str:
    """The text of a file; a byte order mark is left out.

    Args:
        path: of the file.
        largest: bytes that it may have.

    Raises:
        ValueError: if it is no regular file, cannot be read, is larger than allowed, or is not UTF-8; names the file.
    """
    return decode_text(read_bytes(path, largest), str(path))


def read_bytes(path: str | Path, largest: int = LARGEST_CONFIGURATION) -> bytes:
    """The bytes of a file. Arguments and errors as `read_text`, encoding aside."""
    try:
        # Opening a FIFO that nobody writes to would wait for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            mode = os.fstat(handle).st_mode
            content = b"" if not stat.S_ISREG(mode) else _read(handle, largest + 1)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{str(path)!r} cannot be read ({reason}); check the path, or copy the file anew.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ValueError(f"{str(path)!r} is {kind}; give a regular file.")
    if len(content) > largest:
        raise ValueError(f"{str(path)!r} has more than {largest:,} bytes, the most that is read; give the right file.")
    return content


def decode_text(content: bytes, origin: str) -> str:
    """UTF-8 text without its byte order mark.

    Raises:
        ValueError: if the bytes are not UTF-8; names `origin` and the line.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{origin} is UTF-16 text, not UTF-8; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise ValueError(f"{origin} is not UTF-8 text (byte 0x{byte:02x} in line {line}); save it as UTF-8.") from error


def _read(handle: int, most: int) -> bytes:
    pieces = []
    while most and (piece := os.read(handle, min(most, 1 << 20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)
