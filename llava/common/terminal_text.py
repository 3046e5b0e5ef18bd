"""Printing text from outside: what would act on the terminal is written out instead."""

from __future__ import annotations

import sys
from typing import TextIO

from llava.common.shown import printable


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
