"""Decodes text that may be base64, base32, hex, character codes or escapes, nested in each other."""

from __future__ import annotations

import base64
import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

DEEPEST = 4
"""Encodings inside each other that are taken off."""
_MOST = 64  # bytes that are decoded for each byte of a text, at most
_LEAST = 1 << 20  # bytes that may be decoded of any text
# What is decoded further: text, with the zeros that UTF-16 and UTF-32 put between its letters. Most of what decoding at
# the wrong place gives is none.
_TEXT = re.compile(rb"[\x00\t\n\r\x20-\x7e]{8,}")

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BASE64 = _LETTERS + b"0123456789+/"
_BASE32 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_HEX = b"0123456789abcdefABCDEF"
_TO_DIGITS = bytes.maketrans(_BASE32, b"0123456789abcdefghijklmnopqrstuv")
_FROM_URLS = bytes.maketrans(b"-_", b"+/")
_ESCAPE = re.compile(
    rb"\\(?:x([0-9a-fA-F]{2})|u\{?([0-9a-fA-F]{4,6})\}?|U([0-9a-fA-F]{8})|([0-7]{3}))|=([0-9A-F]{2})|=\r?\n"
)
_BACKSLASHES = re.compile(rb"\\{2,}")
_CODE = re.compile(rb"(?<![0-9a-zA-Z])\d{2,3}(?![0-9a-zA-Z])")


def _all_but(kept: bytes) -> bytes:
    return bytes(set(range(256)) - set(kept))


_NOT_BASE64, _NOT_URLS = _all_but(_BASE64), _all_but(_BASE64 + b"-_")
_NOT_BASE32, _NOT_HEX = _all_but(_BASE32), _all_but(_HEX)


def readings(content: bytes) -> Iterator[bytes | None]:
    """What bytes may say: themselves, and what comes out of them decoded up to `DEEPEST` times.

    An encoded stretch is found wherever it stands and whatever stands between its letters, for a text is decoded as a
    whole, from each place where a group of letters may begin. The work is bounded by the length of the text.

    Args:
        content: a text in UTF-8.

    Yields:
        Readings, the plain one first; None at the end where the bound was met before all were tried.
    """
    left = max(_MOST * len(content), _LEAST)
    level = [content.replace(b"\0", b"")]
    yield content
    for depth in range(DEEPEST):
        found = []
        for held in level:
            for decoded in _decoded(held, is_text=depth == 0):
                left -= len(decoded)
                if left < 0:
                    yield None
                    return
                yield decoded
                found += [text.replace(b"\0", b"") for text in _TEXT.findall(decoded)]
        level = found


def _decoded(held: bytes, is_text: bool) -> Iterator[bytes]:
    plain = _unescaped(held)
    if plain != held:
        yield plain
    codes = bytes(number for code in _CODE.findall(held) if (number := int(code)) < 256)
    if codes:
        yield codes
    yield from _from_base64(held.translate(None, _NOT_URLS).translate(_FROM_URLS))
    if is_text and (b"-" in held or b"_" in held):  # they may also stand between the letters
        yield from _from_base64(held.translate(None, _NOT_BASE64))
    digits = held.replace(b"0x", b"").translate(None, _NOT_HEX)
    for start in range(2):
        stretch = digits[start : len(digits) - (len(digits) - start) % 2]
        if stretch:
            yield binascii.unhexlify(stretch)
    yield from _from_base32(held.translate(None, _NOT_BASE32))


def _from_base64(letters: bytes) -> Iterator[bytes]:
    for start in range(4):
        stretch = letters[start:]
        if len(stretch) > 1:
            stretch = stretch[: len(stretch) - (len(stretch) % 4 == 1)]
            yield base64.b64decode(stretch + b"=" * (-len(stretch) % 4))


def _from_base32(letters: bytes) -> Iterator[bytes]:
    """From each of the eight places of a group; Python's own decoder is a hundred times slower."""
    if len(letters) < 4:
        return
    bits = int(letters.translate(_TO_DIGITS), 32)
    for shift in range(8):
        moved = bits << shift
        yield moved.to_bytes((moved.bit_length() + 7) // 8, "big")


def _unescaped(held: bytes) -> bytes:
    """Without percent signs, backslashes, entities and the equals signs of quoted-printable text; wide and styled
    letters that come out are the plain ones."""
    text = _ESCAPE.sub(_letter, _BACKSLASHES.sub(rb"\\", unquote_to_bytes(held)))
    if b"&" in text:
        text = html.unescape(text.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogatepass")
    return text if text.isascii() else plain_letters(text.decode("utf-8", "replace")).encode("utf-8", "replace")


def plain_letters(text: str) -> str:
    """Wide and styled letters as the plain ones."""
    return unicodedata.normalize("NFKC", text)


def _letter(escape: re.Match[bytes]) -> bytes:
    code = escape[1] or escape[2] or escape[3] or escape[5] or b"110000"
    value = int(escape[4], 8) if escape[4] else int(code, 16)
    return chr(value).encode("utf-8", "surrogatepass") if value < 0x110000 else b""
