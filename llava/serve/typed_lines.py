"""Lines that are typed or piped into a chat: read whatever they hold, and said in words where they cannot be asked."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

LONGEST_LINE = 1_000_000
"""Characters of a line that is read; no model can number that many tokens."""
_UNDECODED = range(0xDC80, 0xDD00)  # what Python reads a byte as that is not of the encoding


def typed_lines(source: TextIO, prompt: str) -> Iterator[str]:
    """Lines of the input without their ends; a terminal is prompted, with editing where Python has readline.

    Bytes that are not of the input's encoding become halves of surrogate pairs, as in names of files. Of a line longer
    than `LONGEST_LINE` one character more is given, and the rest is passed over.

    Args:
        source: standard input.
        prompt: for a terminal.
    """
    if isinstance(source, io.TextIOWrapper):
        with suppress(io.UnsupportedOperation):  # where somebody has read from it already
            source.reconfigure(errors="surrogateescape")
    if not source.isatty():
        while line := source.readline(LONGEST_LINE + 1):
            rest = line
            while len(rest) == LONGEST_LINE + 1 and not rest.endswith("\n"):
                rest = source.readline(LONGEST_LINE + 1)
            yield line.removesuffix("\n")
        return
    while True:
        try:
            yield input(prompt)
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            return


def check_question(question: str) -> None:
    """Say why a line is no question.

    Raises:
        ValueError: if it is too long, is not of the input's encoding, or holds control characters other than tabs.
    """
    if len(question) > LONGEST_LINE:
        raise ValueError(f"The line has more than {LONGEST_LINE:,} characters, which no model takes; ask in fewer.")
    for place, character in enumerate(question, start=1):
        code = ord(character)
        if code in _UNDECODED:
            raise ValueError(
                f"The line is not UTF-8: its character {place} is the byte 0x{code - 0xDC00:02x}. Convert the input, "
                "for example with iconv -t UTF-8."
            )
        if character == "\x00":
            raise ValueError(
                f"The line holds a NUL at character {place}; input in UTF-16 has to be converted to UTF-8."
            )
        if character != "\t" and unicodedata.category(character) == "Cc":
            raise ValueError(
                f"The line holds the control character {character!r} at character {place}, as keys and coloured text "
                "bring it; write the question without it."
            )
