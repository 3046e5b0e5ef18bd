"""Keys and passwords that never stand in messages or files, whatever a server sends back of them."""

from __future__ import annotations

import html
import re
import unicodedata
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import Iterable
from urllib.parse import quote, unquote

REDACTED = "[key removed]"
SHORTEST_SECRET = 6
"""Shorter keys are placeholders such as `none` and `EMPTY`, which servers of one's own take, and ordinary words."""
_PART = 8  # characters of a secret that are not shown in one piece
WITHHELD = "[left out: it spells the key]"
_ROUNDS = 3  # a text may be escaped twice, and decoded once more to see that nothing is left
_ESCAPED = re.compile(r"\\+(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))")


class Redactor:
    """Takes secrets out of texts: whole, in parts of 8 characters or more, and percent-encoded, in base64 and in hex.

    A text that spells a secret otherwise (escaped, as HTML entities, apart, backwards, in wide letters) is left out
    whole: where the secret stands in it cannot be told.

    Args:
        secrets: empty ones are left out.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = [secret for secret in secrets if secret]
        self._whole = [re.escape(f"Bearer {secret}") for secret in secrets]
        self._spelled = {_bare(form) for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)}
        self._parts: dict[int, set[str]] = {}
        for form in {form for secret in secrets if len(secret) >= SHORTEST_SECRET for form in _forms(secret)}:
            size = min(_PART, len(form))
            pieces = (form[start : start + size].lower() for start in range(len(form) - size + 1))
            self._parts.setdefault(size, set()).update(pieces)

    def __call__(self, text: str) -> str:
        """The text without secrets; upper and lower case are the same."""
        for whole in self._whole:
            text = re.sub(whole, f"Bearer {REDACTED}", text, flags=re.IGNORECASE)
        spans = self._spans(text)
        if not spans:
            return WITHHELD if self._spells(text) else text
        kept, end = [], 0
        for start, stop in spans:
            kept += [text[end:start], REDACTED]
            end = stop
        redacted = "".join([*kept, text[end:]])
        return WITHHELD if self._spells(redacted) else redacted

    def _spells(self, text: str) -> bool:
        """Whether a secret can be read in a text once it is decoded and what stands between its letters is gone."""
        for _ in range(_ROUNDS):
            bare = _bare(text)
            if any(form in bare or form[::-1] in bare for form in self._spelled):
                return True
            text = html.unescape(unquote(_ESCAPED.sub(_letter, text)))
        return False

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where parts of secrets stand, joined where they overlap or touch, in order."""
        lower = "".join(letter.lower() if letter.isascii() else letter for letter in text)  # of the same length
        found = sorted(
            (start, start + size)
            for size, pieces in self._parts.items()
            for start in range(len(lower) - size + 1)
            if lower[start : start + size] in pieces
        )
        spans: list[tuple[int, int]] = []
        for start, stop in found:
            if spans and start <= spans[-1][1]:
                spans[-1] = (spans[-1][0], max(stop, spans[-1][1]))
            else:
                spans.append((start, stop))
        return spans


def _bare(text: str) -> str:
    """Letters and digits alone, without case, wide and styled ones as the plain ones."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", text) if letter.isalnum()).casefold()


def _letter(escape: re.Match[str]) -> str:
    code = int(escape[1] or escape[2] or escape[3], 16)
    return chr(code) if code < 0x110000 else ""


def _forms(secret: str) -> Iterable[str]:
    """A secret as it may be written."""
    content = secret.encode("utf-8", "surrogatepass")
    yield secret
    yield quote(content, safe="")
    yield content.hex()
    yield b32encode(content).decode().rstrip("=")
    for encode in (b64encode, urlsafe_b64encode):
        for before in range(3):  # bytes of a neighbour in the first group of three, as of `Bearer ` before a key
            padded = encode(b"\0" * before + content).decode().rstrip("=")
            inner = padded[(before * 8 + 5) // 6 : (before + len(content)) * 8 // 6]
            if len(inner) >= SHORTEST_SECRET:
                yield inner
