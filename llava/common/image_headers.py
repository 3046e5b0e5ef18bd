"""Limits on image headers that Pillow and the libraries below it do not have: scans, tags and tiles.

Tags of a TIFF directory (also of EXIF and of a camera's list of images, which are TIFF inside) may all name the same
bytes, and each tag is a copy of them: a file of 1 MB costs gigabytes before its size in pixels is known. A TIFF tile
may be larger than the image. A progressive JPEG of 1 MB may hold 17,000 scans, each as costly as the image.
"""

from __future__ import annotations

import re
import struct

MOST_SCANS = 200
"""Scans of a progressive JPEG; encoders write about ten."""
_ROOM = 16 * 2**20  # bytes that tags may take beyond those of the file
_MOST_TAGS = 10**6
_JUNK = 2**16  # bytes between segments that are passed over
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TILE_SIDES = (322, 323)
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"MM\0+", b"II+\0")
_EXIF = b"Exif\0\0"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}


class UnfitFileError(ValueError):
    """An image file that is not accepted, whether or not it could be read; the message is a clause that says why."""


def header_is_whole(beginning: bytes) -> bool:
    """Whether the beginning of a file holds all that `check_header` looks at before pixels are decoded."""
    if beginning.startswith(_TIFF_STARTS):
        return False
    return not beginning.startswith(b"\xff\xd8") or b"\xff\xda" in beginning


def check_header(content: bytes, most_pixels: int) -> None:
    """See that a JPEG's or TIFF's header costs no more than its file; other formats pass.

    Args:
        content: content of the file.
        most_pixels: that a tile may have.

    Raises:
        UnfitFileError: if it does not.
    """
    if content.startswith(b"\xff\xd8"):
        _check_jpeg(content)
    elif content.startswith(_TIFF_STARTS):
        check_directory(content, most_pixels)


def check_directory(content: bytes, most_pixels: int | None = None) -> None:
    """See that the tags of a TIFF directory are no larger together than the file, give or take 16 MiB; all directories.

    What is too short for a directory passes: Pillow says so itself.

    Args:
        content: content of a TIFF file or of EXIF.
        most_pixels: that a tile may have; None leaves tiles alone.

    Raises:
        UnfitFileError: if they are, a tile is too large, or there are more than a million tags.
    """
    content = content.removeprefix(_EXIF)
    if len(content) < 16:
        return
    order, is_big = ("<" if content[:2] == b"II" else ">"), content[2] == 43
    head, width, word = (8, 20, 8) if is_big else (2, 12, 4)
    start, tags, seen = _number(content, word if is_big else 4, word, order), 0, set[int]()
    while start and start not in seen and start < len(content):
        seen.add(start)
        count = min(_number(content, start, head, order), (len(content) - start) // width)
        tags += count
        if tags > _MOST_TAGS:
            raise UnfitFileError(f"it holds more than {_MOST_TAGS:,} tags")
        end = start + head + count * width
        _check_tags(content, range(start + head, end, width), order, word, most_pixels)
        start = _number(content, end, word, order)


def _check_tags(content: bytes, places: range, order: str, word: int, most_pixels: int | None) -> None:
    total, sides = 0, dict.fromkeys(_TILE_SIDES, 0)
    for at in places:
        tag, kind = _number(content, at, 2, order), _number(content, at + 2, 2, order)
        total += min(_number(content, at + 4, word, order) * _TAG_SIZES.get(kind, 0), len(content))
        if tag in sides:
            value = _number(content, at + 4 + word, min(_TAG_SIZES.get(kind, 4), word), order)
            sides[tag] = max(sides[tag], value)
    if total > len(content) + _ROOM:
        raise UnfitFileError(f"its tags name {total:,} bytes in a file of {len(content):,}")
    tile = sides[_TILE_SIDES[0]] * sides[_TILE_SIDES[1]]
    if most_pixels is not None and tile > most_pixels:
        raise UnfitFileError(f"its tiles have {tile:,} pixels, more than the {most_pixels:,} that an image may have")


def _check_jpeg(content: bytes) -> None:
    exif, at, junk, is_progressive = b"", 2, 0, False
    while 0 <= at < len(content) - 3:
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            junk, at = junk + 1, at + 1
            if junk > _JUNK:
                raise UnfitFileError("it holds too much between its segments")
            continue
        marker = content[at + 1]
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == 0xDA:
            break
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        segment = content[at + 4 : end]
        is_progressive |= marker in (0xC2, 0xC6, 0xCA, 0xCE)
        if marker == 0xE1 and segment.startswith(_EXIF):
            exif += segment.removeprefix(_EXIF)
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            check_directory(segment[4:])
        at = max(end, at + 2)
    check_directory(exif)
    scans = (match for match in _MARKER.finditer(content, at) if match[0] == b"\xff\xda") if is_progressive else ()
    if any(number > MOST_SCANS for number, _ in enumerate(scans, start=1)):
        raise UnfitFileError(f"it holds more than {MOST_SCANS} scans")


def _number(content: bytes, at: int, size: int, order: str) -> int:
    """An unsigned number; 0 where the content ends before it."""
    if at < 0 or at + size > len(content):
        return 0
    return int(struct.unpack_from(order + {1: "B", 2: "H", 4: "I", 8: "Q"}[size], content, at)[0])
