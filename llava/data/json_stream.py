"""Reading a JSON list, JSON lines or a Parquet table one item at a time.

A file of a gigabyte becomes several as Python objects; here only one item and a window of the text exist at once.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llava.common.json_files import NotJsonError, decode_at, parse_json, require_shallow

CHUNK = 1 << 22  # characters
_SPACE = re.compile(r"[ \t\n\r]*")
_ENDS = (",", "]", " ", "\t", "\n", "\r")  # what may follow an item
_ROWS = 256  # of a Parquet table at a time
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
# First bytes of files that are not read, and what they are.
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"BZh": "compressed with bzip2; unpack it",
    b"\xfd7zXZ": "compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it",
    b"ARROW1": "an Arrow file; write it as Parquet or JSON lines",
    b"\xff\xfe": "UTF-16 text, not UTF-8; save it as that",
    b"\xfe\xff": "UTF-16 text, not UTF-8; save it as that",
}


def iterate_json(path: Path, chunk: int = CHUNK) -> Iterator[Any]:
    """Items of a JSON list, the objects of a file that has one on every line, or the rows of a Parquet table.

    What a file is, its first bytes say, whatever its name.

    Args:
        path: UTF-8 text with or without a byte order mark, perhaps compressed with gzip; or Parquet.
        chunk: characters of a list to read at a time.

    Raises:
        ValueError: if it is none of these; says where.
    """
    if is_parquet(path):
        yield from _rows(path)
        return
    with open_text(path) as file:
        try:
            yield from _items(_Window(file, chunk)) if _starts_a_list(file) else _lines(file)
        except _FormatError as error:
            raise ValueError(f"{path} is neither a JSON list nor JSON lines: {error}") from error


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet table."""
    return _first_bytes(path).startswith(_PARQUET)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 file for reading, unpacked if it is compressed with gzip; a byte order mark is left out.

    Raises:
        ValueError: if it is something else, or while reading turns out to be damaged.
    """
    first = _first_bytes(path)
    for beginning, what in _OTHERS.items():
        if first.startswith(beginning):
            raise ValueError(f"{path} is {what}. JSON and JSON lines, both also with gzip, and Parquet are read.")
    try:
        if first.startswith(_GZIP):
            with gzip.open(path, "rt", encoding="utf-8-sig") as unpacked:
                yield unpacked
        else:
            with path.open(encoding="utf-8-sig") as file:
                yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; copy it again.") from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path} is a Parquet table, which needs the package pyarrow; install it.") from error
    try:
        with ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} is a damaged Parquet table: {error}") from error


class _FormatError(Exception):
    """Text that is not JSON; the message says where and why."""


class _Window:
    """The part of a file that is being decoded: `text` from position `at` on."""

    def __init__(self, file: TextIO, chunk: int) -> None:
        self.file = file
        self.chunk = chunk
        self.text = ""
        self.at = 0

    def next_mark(self) -> str:
        """Skip white space and step over the character behind it; "" at the end of the file."""
        mark = self.peek()
        self.at += len(mark)
        return mark

    def peek(self) -> str:
        """Skip white space and look at the character behind it."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = self.at if found is None else found.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read():
                return ""

    def value(self) -> Any:
        """Skip white space and decode the value behind it.

        Raises:
            json.JSONDecodeError: if there is none, even with the rest of the file.
            NotJsonError: if an object in it holds a key twice, or a number is not finite.
        """
        self.peek()
        while True:
            try:
                value, end = decode_at(self.text, self.at)
            except json.JSONDecodeError:
                if not self._read():
                    raise
                continue
            # A number may go on behind the window, and so may its fraction: "1." reads as 1 and a rest.
            if self.text[end : end + 1] in _ENDS or not self._read():
                self.at = end
                return value

    def _read(self) -> bool:
        """Drop what is done and read on; twice as much each time, so that long values do not cost quadratic time."""
        self.text = self.text[self.at :]
        self.at = 0
        more = self.file.read(max(self.chunk, len(self.text)))
        self.text += more
        return bool(more)


def _starts_a_list(file: TextIO) -> bool:
    window = _Window(file, 4096)
    first = window.peek()
    file.seek(0)
    return first == "["


def _lines(file: TextIO) -> Iterator[Any]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield parse_json(line.lstrip("\ufeff"))  # files that were joined bring their byte order marks
            except NotJsonError as error:
                raise _FormatError(f"line {number}: {error}") from error


def _items(window: _Window) -> Iterator[Any]:
    window.next_mark()
    count = 0
    ended = window.peek() == "]"
    if ended:
        window.next_mark()
    while not ended:
        try:
            value = window.value()
            require_shallow(value)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
            raise _FormatError(f"entry {count} of the list: {getattr(error, 'msg', error)}") from error
        yield value
        count += 1
        mark = window.next_mark()
        if mark not in (",", "]"):
            raise _FormatError(
                f"{mark or 'the end of the file'!r} follows entry {count - 1} of the list, not ',' or ']'"
            )
        ended = mark == "]"
    if window.peek():
        raise _FormatError(f"{window.peek()!r} follows the end of the list")
