"""Keys that clients show: read from the environment, compared in constant time, written nowhere."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256

from llava.serve.api.failures import AUTHENTICATION, ApiError

VARIABLE = "LLAVA_API_KEYS"
"""Variable of the environment that holds the keys, with blanks, commas or line breaks between them."""


class AccessKeys:
    """The keys of a server; without any, everybody may ask.

    Args:
        keys: the keys. Their digests are kept, not they.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [_digest(key) for key in keys]

    def __repr__(self) -> str:
        return f"AccessKeys({len(self._digests)})"

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> AccessKeys:
        """Those of the environment.

        Raises:
            ValueError: if the variable is set, but names no key, or one that no header can hold.
        """
        value = environment.get(VARIABLE)
        if value is None:
            return cls()
        keys = value.replace(",", " ").split()
        if not keys:
            raise ValueError(f"{VARIABLE} is set, but empty; put keys into it, or unset it to let everybody ask.")
        if not all(key.isascii() and key.isprintable() for key in keys):
            raise ValueError(f"{VARIABLE} holds characters that no HTTP header may hold; use printable ASCII in keys.")
        return cls(keys)

    def check(self, authorization: str | None) -> None:
        """See that a request shows one of the keys; how long that takes says nothing about them.

        Args:
            authorization: its header, `Bearer KEY`.

        Raises:
            ApiError: if it does not.
        """
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        shown = _digest(key.strip())
        matches = [hmac.compare_digest(shown, known) for known in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            message = "The API key is missing or wrong; send one that the server knows as Authorization: Bearer KEY."
            raise ApiError(401, message, AUTHENTICATION, None, "invalid_api_key")


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogatepass")).digest()
