"""Reading a JSON list, JSON lines or a Parquet table one item at a time.

A file of a gigabyte becomes several as Python objects; here only one item and a window of the text exist at once.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from llava.common.json_files import (
    DEEPEST,
    AmbiguousJsonError,
    NotJsonError,
    decode_at,
    parse_json,
    require_shallow,
    why_not_json,
)
from llava.common.outside_files import kind_of_file, why_unreadable
from llava.common.shown import LONGEST, printable, shown

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


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Stands for a record that other programs would read otherwise: a key comes twice, or a number is not finite.

    Attributes:
        value: the record as Python reads it, with the last of equal keys.
        reason: a main clause without an end.
        place: place of the record in its file, such as "line 7".
    """

    value: Any
    reason: str
    place: str = ""


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


def require_data_file(path: Path, advice: str) -> None:
    """See that there is a data file.

    Args:
        path: path of the file.
        advice: what to do where there is none, as a clause.

    Raises:
        ValueError: if there is none, it is no file, or it cannot be asked about.
    """
    with reading(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError as error:
            raise ValueError(f"There is no data file {shown(str(path))}; {advice}.") from error
        except ValueError as error:
            raise ValueError(_unreadable(path, error)) from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"The data file {shown(str(path))} is {kind_of_file(mode)}; name a file of records, {advice}.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in words why a data file cannot be opened or read.

    Raises:
        ValueError: for an OSError.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    return f"The data file {shown(str(path))} cannot be read: {why_unreadable(error)}."


def is_parquet(path: Path) -> bool:
    """Whether a file is a Parquet table.

    Raises:
        ValueError: if it cannot be read.
    """
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
            with reading(path), _gzip_told(path), gzip.open(path, "rt", encoding="utf-8-sig") as unpacked:
                yield unpacked
        else:
            with reading(path), path.open(encoding="utf-8-sig") as file:
                yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


@contextmanager
def _gzip_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; copy it again.") from error


def _first_bytes(path: Path) -> bytes:
    with reading(path), path.open("rb") as file:
        return file.read(8)


def _rows(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path} is a Parquet table, which needs the package pyarrow; install it.") from error
    try:
        with ParquetFile(path) as table:
            if twice := _names_twice(table.schema_arrow):
                raise ValueError(f"{path} has two columns or fields of the name {shown(twice)}; keep one of them.")
            for batch in table.iter_batches(batch_size=_ROWS):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise ValueError(_unreadable(path, error)) from error
        said = printable(" ".join(str(error).split()), LONGEST)
        raise ValueError(f"{path} is a damaged Parquet table: {said}; write it anew.") from error


def _names_twice(fields: Iterable[Any]) -> str | None:
    """A name that comes twice among the fields of a table, of a record in it or of a list's items."""
    fields, names = list(fields), set[str]()
    for field in fields:
        if field.name in names:
            return str(field.name)
        names.add(field.name)
    kinds = (field.type for field in fields if field.type.num_fields)
    return next(filter(None, (_names_twice(map(kind.field, range(kind.num_fields))) for kind in kinds)), None)


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

    def value(self, place: str) -> Any:
        """Skip white space and decode the value behind it.

        Args:
            place: place of the value in its file, for messages.

        Raises:
            json.JSONDecodeError: if there is none, even with the rest of the file; others as of `decode_at`.
        """
        self.peek()
        while True:
            try:
                value, end = _record_at(self.text, self.at, place)
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
    for number, value in numbered_lines(file):
        if isinstance(value, NotJsonError):
            raise _FormatError(f"line {number}: {value}") from value
        yield value


def numbered_lines(file: TextIO) -> Iterator[tuple[int, Any]]:
    """The number of every line that is not empty, from 1, and the value of its JSON, or a NotJsonError in its place."""
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                # Files that were joined bring their byte order marks.
                yield number, _record_of(line.lstrip("\ufeff"), f"line {number}")
            except NotJsonError as error:
                yield number, error


def _record_of(text: str, place: str) -> Any:
    """The value of a text, or `Ambiguous`."""
    try:
        return parse_json(text)
    except AmbiguousJsonError as error:
        return Ambiguous(parse_json(text, lenient=True), str(error), place)


def _record_at(text: str, start: int, place: str) -> tuple[Any, int]:
    """The value that begins at a place of a text, or `Ambiguous`, and where it ends; errors as of `decode_at`."""
    try:
        value, end = decode_at(text, start)
    except AmbiguousJsonError:
        _, end = decode_at(text, start, lenient=True)
        return _record_of(text[start:end], place), end
    if text.count("[", start, end) + text.count("{", start, end) > DEEPEST:
        require_shallow(value)
    return value, end


def _items(window: _Window) -> Iterator[Any]:
    window.next_mark()
    count = 0
    ended = window.peek() == "]"
    if ended:
        window.next_mark()
    while not ended:
        place = f"entry {count} of the list"
        try:
            value = window.value(place)
        except (ValueError, RecursionError) as error:
            raise _FormatError(f"{place}: {why_not_json(error, placed=False)}") from error
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
