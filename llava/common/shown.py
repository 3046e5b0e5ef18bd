"""Values and texts of users in messages: shortened, on one line, with terminal control characters escaped."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

LONGEST = 200
"""Characters of a value that a message shows."""
_CUT = "..."
# Control characters but for tab and line break, marks that turn the direction of writing, line separators, halves of
# surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_DEEPEST = 20  # nested collections that are opened
_DIGITS = 600  # of whole numbers that are written out: Python refuses to write more than 4,300


def shown(value: object, longest: int = LONGEST) -> str:
    """The `repr` of a value, cut behind `longest` characters.

    Only what is shown is visited, so a structure that refers to itself or whose `repr` would have 10^9 characters
    costs no more than a short one.

    Args:
        value: value of any type.
        longest: characters to show at most, with the three points that stand for the rest.
    """
    text = ""
    for piece in _pieces(value, longest, 0):
        text += piece
        if len(text) > longest:
            return text[: max(longest - len(_CUT), 0)] + _CUT
    return text


def first_of(texts: Sequence[str], most: int) -> str:
    """The first `most` of several texts, and how many there are besides: `a, b and 7 more`."""
    listed = ", ".join(texts[:most])
    return f"{listed} and {len(texts) - most} more" if len(texts) > most else listed


def shown_bytes(count: float) -> str:
    """A number of bytes in MiB or KiB, if it is that large, with four digits."""
    for unit, name in ((2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


def printable(text: object, longest: int | None = None, lines: bool = False) -> str:
    r"""A text from outside for a terminal or a report, in which characters that act there stand as Python writes them:
    `\x1b`, `\r`, `\u202e`.

    On one line, everything goes that Python does not print: line breaks, escapes, marks of direction, invisible signs,
    halves of surrogate pairs. Running text keeps tabs, line breaks, and what letters and emoji are joined with; what
    controls a terminal or turns the direction of writing goes there too.

    Args:
        text: what a model, a server, a file or a person wrote; of an error, its message.
        longest: characters to show at most, with the three points that stand for the rest; None shows all.
        lines: whether it is running text. Each character is then looked at by itself, so a text that comes bit by bit
            may be cut anywhere.
    """
    whole = str(text)
    beginning = whole if longest is None else whole[: longest + 1]
    if lines:
        escaped = _ACTING.sub(lambda match: ascii(match[0])[1:-1], beginning)
    else:
        escaped = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in beginning)
    return escaped if longest is None or len(escaped) <= longest else escaped[: max(longest - len(_CUT), 0)] + _CUT


def say(text: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text from outside at once; what the stream's encoding lacks is written as an escape as well.

    Args:
        text: what a model, a server or a person wrote; of an error, its message.
        end: what follows it.
        file: standard output where it is None.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text, lines=True).encode(encoding, "backslashreplace").decode(encoding) + end)
    stream.flush()


def _pieces(value: object, longest: int, depth: int) -> Iterator[str]:
    if isinstance(value, str | bytes | bytearray):
        # One character more than fits, so that a cut text is seen to be longer.
        yield repr(value[: longest + 1])
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 3 * _DIGITS:
        yield f"a whole number of about {int(value.bit_length() * math.log10(2)) + 1} digits"
    elif isinstance(value, Mapping):
        yield from _collection("{", _entries(value, longest, depth), "}", depth)
    elif isinstance(value, list | tuple | set | frozenset):
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")") if isinstance(value, tuple) else ("{", "}")
        yield from _collection(left, (_pieces(item, longest, depth + 1) for item in value), right, depth)
    elif isinstance(value, float | complex | bool | int | Path) or value is None:
        yield repr(value)
    else:
        yield f"an object of type {type(value).__name__}"


def _entries(value: Mapping[Any, Any], longest: int, depth: int) -> Iterator[Iterator[str]]:
    def entry(key: Any) -> Iterator[str]:
        yield from _pieces(key, longest, depth + 1)
        yield ": "
        yield from _pieces(value[key], longest, depth + 1)

    return (entry(key) for key in value)


def _collection(left: str, items: Iterator[Iterator[str]], right: str, depth: int) -> Iterator[str]:
    yield left
    number = -1
    if depth >= _DEEPEST:
        yield _CUT
    else:
        for number, item in enumerate(items):
            if number:
                yield ", "
            yield from item
    yield ",)" if right == ")" and number == 0 else right
