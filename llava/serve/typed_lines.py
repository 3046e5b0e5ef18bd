"""Lines that are typed or piped into a chat: read whatever they hold, and said in words where they cannot be asked."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

from llava.inference.question_text import check_question

LONGEST_LINE = 1_000_000
"""Characters of a line that is read; no model can number that many tokens."""


def typed_lines(source: TextIO, prompt: str) -> Iterator[str]:
    """Lines of the input without their ends; a terminal is prompted, with editing where Python has readline.

    Bytes that are not of the input's encoding become halves of surrogate pairs, as in names of files. Of a line longer
    than `LONGEST_LINE` one character more is given, and the rest is passed over.

    Args:
        source: standard input.
        prompt: prompt shown in a terminal.
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


def check_line(line: str) -> None:
    """Say why a line is no question.

    Raises:
        ValueError: if it is too long, or as in `check_question`.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"The line has more than {LONGEST_LINE:,} characters, which no model takes; ask in fewer.")
    check_question(line, "The line")
