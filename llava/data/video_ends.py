"""Whether a video file is shorter than it says, as a download leaves it that was broken off.

Files made for the web have their index in front, so what is left of one plays, and would be taken for a shorter video.
Two formats say where they end: ISO base media (`.mp4`, `.mov`) by the lengths of its boxes, Matroska (`.mkv`, `.webm`)
by that of its segment; a length of "unknown", as of live recordings, says nothing.

Sources: ISO/IEC 14496-12, 4.2; RFC 8794 (EBML), 4 and 6; RFC 9559 (Matroska), 5.1.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import BinaryIO

from llava.common.image_headers import UnfitFileError

_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip")
_WITH_FRAMES = (b"moov", b"moof", b"mdat")
"""Boxes that frames need; what is behind them may be anything."""
_MOST_BOXES = 100_000
_EBML, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def require_whole(path: Path) -> None:
    """Refuse a file that ends before its own end.

    Args:
        path: a video file; of other formats nothing is known.

    Raises:
        UnfitFileError: says how many bytes it has, and how many it should have.
        OSError: if it cannot be read.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        return
    with path.open("rb") as file:
        start = file.read(8)
        end = None
        if start[4:] in _FIRST_BOXES:
            end = _end_of_boxes(file, facts.st_size)
        elif start[:4] == _EBML:
            end = _end_of_segment(file)
    if end is not None and end > facts.st_size:
        raise UnfitFileError(
            f"it has {facts.st_size} bytes and says that it ends after {end}, so its end is missing; copy it anew"
        )


def _end_of_boxes(file: BinaryIO, size: int) -> int | None:
    """Where the first box with frames ends that the file does not hold whole; None where there is none."""
    at = 0
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            return None
        at += length
        if at > size:
            return at if kind in _WITH_FRAMES else None
    return None


def _end_of_segment(file: BinaryIO) -> int | None:
    """Where the segment of a Matroska file ends; None where it does not say."""
    file.seek(len(_EBML))
    header = _length(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return None
    length = _length(file)
    return None if length is None else file.tell() + length


def _length(file: BinaryIO) -> int | None:
    """A length of 1 to 8 bytes, as many as zeros lead its first byte and one more; None of an unknown one."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    bits = 7 * (more + 1)
    value = int.from_bytes(first + file.read(more), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
