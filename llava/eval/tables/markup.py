"""Text from outside as part of Markdown, LaTeX or CSV: it stays on its line and in its cell, and is no markup."""

from __future__ import annotations

import re

from llava.common.shown import printable

INCOMPLETE, SEVERAL = "†", "‡"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    INCOMPLETE: r"\dag{}",
    SEVERAL: r"\ddag{}",
}
_FORMULA = "=+-@＝＋－＠"
_MARKDOWN = re.compile(
    r"(?P<escape>\\(?=[!-/:-@\[-`{-~])|[`|$]|\](?=[(\[:]))"  # an escape, code, a cell's end, a formula, a link
    r"|(?P<tag><(?=[A-Za-z/!?]))|(?P<entity>&(?=#?\w+;))"
)
_NAMED = {"tag": "&lt;", "entity": "&amp;"}


def markdown_text(text: str) -> str:
    """Text for a cell, a heading or a paragraph: without code, HTML, formulas and links.

    Ordinary names and sentences stay as they are.
    """
    return _MARKDOWN.sub(lambda found: _NAMED.get(found.lastgroup or "") or "\\" + found[0], printable(text))


def latex_text(text: str) -> str:
    """Text with the characters that LaTeX gives a meaning written out, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


def csv_value(value: object) -> object:
    """A value of a CSV file that no spreadsheet takes for a formula: an apostrophe stands before text like one.

    Numbers stay as they are, also those that are given as text.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    if text.lstrip(" '\"")[:1] not in tuple(_FORMULA) or re.fullmatch(r"[+-]?\d+(\.\d+)?", text):
        return text
    return f"'{text}"
