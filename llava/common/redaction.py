"""Removes keys and passwords from messages and files, also where a server sends them back encoded."""

from __future__ import annotations

import re
from base64 import b32encode, b64encode, urlsafe_b64encode
from collections.abc import Iterable
from urllib.parse import quote

from llava.common.encodings import plain_letters, readings

REDACTED = "[key removed]"
SHORTEST_SECRET = 6
"""Shorter keys are placeholders such as `none` and `EMPTY`, which servers of one's own take, and ordinary words."""
_PART = 8  # characters of a secret that are not shown in one piece
WITHHELD = "[left out: it spells the key]"
_LONGEST_HIDDEN = 15  # letters and digits of a secret in a row that are seen in a text that has to be decoded
_UPPER = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", b"abcdefghijklmnopqrstuvwxyz")
_BETWEEN = bytes(value for value in range(256) if not (value < 128 and chr(value).isalnum()))


class Redactor:
    """Takes secrets out of texts: whole, in parts of 8 characters or more, and percent-encoded, in base64 and in hex.

    A text that spells a secret otherwise (escaped, as HTML entities, apart, backwards, in wide letters, in UTF-16, in
    base64 of base64 and what else `llava.common.encodings` decodes) is left out whole: where the secret stands in it
    cannot be told. So is one with more that can be decoded than is tried.

    Args:
        secrets: empty ones are left out.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        secrets = [secret for secret in secrets if secret]
        self._whole = [re.escape(f"Bearer {secret}") for secret in secrets]
        long = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
        forms = {form for secret in long for form in _forms(secret)}
        spelled = {bare for form in forms if len(bare := _bare(form)) >= SHORTEST_SECRET}
        self._spelled = spelled | {form[::-1] for form in spelled}
        self._hidden = {form.encode() for secret in long for form in _pieces(_bare(secret))}
        self._hidden |= {form.encode() for form in self._spelled}
        self._parts: dict[int, set[str]] = {}
        for form in forms:
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
        if not self._spelled:
            return False
        text = plain_letters(text)
        bare = _bare(text)
        if any(form in bare for form in self._spelled):
            return True
        for content in readings(text.encode("utf-8", "surrogatepass")):
            if content is None:
                return True
            plain = content.translate(_UPPER, _BETWEEN)  # also of UTF-16 and UTF-32, which put zeros between letters
            if any(form in plain for form in self._hidden):
                return True
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
    return re.sub(r"[\W_]+", "", plain_letters(text)).casefold()


def _pieces(bare: str) -> Iterable[str]:
    """Parts, also backwards, of which any stretch of `_LONGEST_HIDDEN` characters holds one."""
    size = _LONGEST_HIDDEN // 2 + 1
    for start in range(0, len(bare) - size + 1, size):
        yield bare[start : start + size]
        yield bare[start : start + size][::-1]


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
