"""Text from outside as a terminal shows it: what would act on the terminal is written out instead."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Control characters but for tab and line break, marks that turn the direction of writing, line separators, halves of
# surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""A text in which characters that act on a terminal are written as escapes: `\x1b`, `\r`, `\u202e`.

    Each character is looked at by itself, so the pieces of a text that comes bit by bit may be cut anywhere.

    Args:
        text: what a model, a server or a person wrote; of an error, its message.
    """
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), str(text))


def say(text: object, end: str = "\n", file: TextIO | None = None) -> None:
    """Print a text from outside at once; what the stream's encoding lacks is written as an escape as well.

    Args:
        text: as in `printable`.
        end: what follows it.
        file: standard output where it is None.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding) + end)
    stream.flush()
