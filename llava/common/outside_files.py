"""Reads files of users with a bound on their size; says in a sentence why one cannot be read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from llava.common.shown import LONGEST, printable, shown

LARGEST_CONFIGURATION = 1 << 20
"""Bytes of the largest file that is read as a configuration; those of this project have at most a few thousand."""

DAMAGED = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError)
"""What libraries raise for a file that holds other bytes than its format has, or that a disk does not give."""

_WHY = {
    errno.ENOENT: "there is no such file; check the path",
    errno.ENOTDIR: "a part of its path is a file, not a folder; check the path",
    errno.EACCES: "you may not read it; change its permissions or those of its folders",
    errno.EPERM: "you may not read it; change its permissions or those of its folders",
    errno.ENAMETOOLONG: "its name is too long for the file system; give a shorter one",
    errno.ELOOP: "its links lead in a circle, or on too far; name the file itself",
    errno.EISDIR: "it is a folder; name a file",
    errno.ENXIO: "it is a socket or a device; name a file",
    errno.EIO: "the disk reports an error; check the disk, or copy the file anew",
    errno.ESTALE: "the network drive lost it; mount the drive again",
    errno.ETIMEDOUT: "the network drive does not answer; mount the drive again",
    errno.EMFILE: "too many files are open; allow more (`ulimit -n`)",
    errno.ENFILE: "too many files are open on this machine; close some",
}


def why_unreadable(error: Exception) -> str:
    """Why a file cannot be opened or read, and what to do, in a clause; on one line, without the file's name.

    Args:
        error: error of the system, or Python's ValueError about a name that no file can have.
    """
    if isinstance(error, OSError) and error.errno:
        said = error.strerror or os.strerror(error.errno)
        return f"{_WHY[error.errno]} ({said})" if error.errno in _WHY else printable(f"{said}; check the path", LONGEST)
    if isinstance(error, UnicodeError):
        return "its name holds half of a surrogate pair, as no file's name does; check the name"
    if "null byte" in str(error) or "null character" in str(error):
        return "its name holds a zero byte, as no file's name does; check the name"
    return printable(str(error) or type(error).__name__, LONGEST)


def in_words(error: BaseException) -> str:
    """An error as a sentence: what the system says of a file or folder, with its name and the remedy; else its own.

    Args:
        error: error of a program.
    """
    if not told_by_system(error):
        return str(error) or type(error).__name__
    assert isinstance(error, OSError)
    return f"{shown(os.fsdecode(error.filename))} cannot be opened: {why_unreadable(error)}."


def in_short(error: BaseException, longest: int = 300) -> str:
    """What an error says, on one line; its class, too, where the message alone says little."""
    said = " ".join(str(error).split())
    said = said if len(said) > 25 else f"{type(error).__name__}: {said}".removesuffix(": ")
    return said if len(said) <= longest else f"{said[: longest - 3]}..."


def told_by_system(error: BaseException) -> bool:
    """Whether an error is the system's own, about a file or folder that it names."""
    return isinstance(error, OSError) and bool(error.errno) and isinstance(error.filename, str | bytes)


def files_below(folder: str | Path, ending: str) -> list[Path]:
    """Files in a folder and the folders below it, in the order of their paths; links to folders are not followed.

    Args:
        folder: folder to look in.
        ending: ending of their names.

    Raises:
        OSError: if one of the folders cannot be read, so that nobody takes a part of the files for all.
    """

    def stop(error: OSError) -> None:
        raise error

    found = os.walk(folder, onerror=stop)
    return sorted(Path(place, name) for place, _, names in found for name in names if name.endswith(ending))


def kind_of_file(mode: int) -> str:
    """What something is, in words, by its `st_mode`."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_text(path: str | Path, largest: int = LARGEST_CONFIGURATION) -> str:
    """The text of a file; a byte order mark is left out.

    Args:
        path: path of the file.
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
