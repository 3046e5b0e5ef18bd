"""Checks the text of questions, by one rule for question files, `--query`, lines of a chat and harnesses.

Every character is but a NUL, halves of surrogate pairs, and the control characters that stand for keys and colours of a
terminal; blanks of all kinds, tabs and line breaks among them, and what Unicode has behind U+007F are text.
"""

from __future__ import annotations

import re
import unicodedata

from llava.constants import DEFAULT_IMAGE_TOKEN

_REFUSED = re.compile("[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_UNDECODED = range(0xDC80, 0xDD00)  # what Python reads a byte as that is not of the encoding
_UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # categories of blanks, control and formatting characters


def check_question(question: str, what: str = "The question") -> None:
    """Say why a text is no question.

    Args:
        question: the text.
        what: name of the text, to begin the sentence of an error with, such as "--query".

    Raises:
        ValueError: if it is blank, is not of the input's encoding, or holds a NUL, half of a surrogate pair or a
            control character.
    """
    fault = fault_in(question)
    if fault is not None:
        raise ValueError(f"{what} {fault}.")
    if is_blank(question.replace(DEFAULT_IMAGE_TOKEN, "")):
        raise ValueError(f"{what} is blank, which asks nothing; write a question, or take it out.")


def fault_in(text: str) -> str | None:
    """What keeps a text, or a name that stands beside it, from being one, as the end of a sentence; None if nothing.

    Args:
        text: text of a question, an id or a file's name.
    """
    found = _REFUSED.search(text)
    if found is None:
        return None
    code, place = ord(found[0]), found.start() + 1
    if code in _UNDECODED:
        return (
            f"is not UTF-8: its character {place} is the byte 0x{code - 0xDC00:02x}; convert it, for example with "
            "iconv -t UTF-8"
        )
    if code >= 0xD800:
        return f"holds half of a surrogate pair, U+{code:04X}, at character {place}; write the whole character"
    if code == 0:
        return f"holds a NUL at character {place}; UTF-16 has to be converted to UTF-8, else write it without"
    return (
        f"holds the control character {found[0]!r} at character {place}, as keys and coloured text bring it; write it "
        "without"
    )


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen: it is empty, or holds blanks, control and formatting characters alone."""
    return not text.strip() or all(unicodedata.category(character) in _UNSEEN for character in text)
