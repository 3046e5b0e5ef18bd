"""What can become of a file on a broken disk."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

Damage = Callable[[Path], object]


def zeroed(path: Path) -> None:
    """Zeros of the same number."""
    path.write_bytes(bytes(path.stat().st_size))


def garbled(path: Path, draw: random.Random) -> None:
    """Other bytes of the same number."""
    path.write_bytes(draw.randbytes(path.stat().st_size))


def flipped(path: Path, draw: random.Random) -> None:
    """One bit is another."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """Only a beginning is left."""
    with path.open("r+b") as file:
        file.truncate(draw.randrange(path.stat().st_size))


def half_a_line_more(path: Path) -> None:
    """A writer was killed in the middle of a line."""
    with path.open("ab") as file:
        file.write(b'{"question_id": 3, "pro')


def folder_instead(path: Path) -> None:
    """A folder has the name."""
    path.unlink()
    path.mkdir()


def dangling_link(path: Path) -> None:
    """A link to nothing has the name."""
    path.unlink()
    path.symlink_to("nowhere")


def damages(draw: random.Random) -> dict[str, Damage]:
    """Every kind, by its name."""
    return {
        "zeroed": zeroed,
        "garbled": partial(garbled, draw=draw),
        "one bit flipped": partial(flipped, draw=draw),
        "cut short": partial(cut, draw=draw),
        "removed": Path.unlink,
        "half a line more": half_a_line_more,
        "a folder": folder_instead,
        "a dangling link": dangling_link,
    }
