"""Bounds of what a server takes, keeps and does, so that no request costs others more than a place in the queue."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServingLimits:
    """Bounds of a server.

    Attributes:
        batch_size: most answers that are generated together.
        batch_tokens: most tokens of a batch: its rows times its longest prompt and answer.
        waiting: answers that may be under way beside one full batch: read, prepared, or waiting.
        body_bytes: bytes of one request.
        held_bytes: bytes of all requests that are being read.
        images: images and videos of one request.
        image_pixels: pixels of one image before it is prepared.
        new_tokens: longest answer that may be asked for.
        choices: answers to one request (`n`).
        seconds: time of one request, from its first byte to its last token.
        upload_seconds: time in which a request has to be read.
        fetch_seconds: time in which an image behind an address has to be there.
        ending_seconds: time in which what is under way is finished once the server is asked to end.
    """

    batch_size: int = 8
    batch_tokens: int = 65536
    waiting: int = 64
    body_bytes: int = 64 * MEBIBYTE
    held_bytes: int = 512 * MEBIBYTE
    images: int = 16
    image_pixels: int = 50_000_000
    new_tokens: int = 4096
    choices: int = 8
    seconds: float = 300.0
    upload_seconds: float = 30.0
    fetch_seconds: float = 20.0
    ending_seconds: float = 30.0
