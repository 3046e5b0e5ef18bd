"""Marks of media that are words: in a record without such media, `<image>` and `<video>` stand for themselves."""

from __future__ import annotations

from collections.abc import Collection

from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN, LITERAL_IMAGE_TOKEN, LITERAL_VIDEO_TOKEN

_WORDS = (
    ("image", DEFAULT_IMAGE_TOKEN, LITERAL_IMAGE_TOKEN),
    ("video", DEFAULT_VIDEO_TOKEN, LITERAL_VIDEO_TOKEN),
)


def words_of_others(turn: str, kinds: Collection[str]) -> str:
    """A turn in which marks of other kinds than those of its record are words, which `encode` takes for no medium.

    Args:
        turn: as written.
        kinds: kinds of the record's media, of `image` and `video`.
    """
    for kind, mark, word in _WORDS:
        if kind not in kinds:
            turn = turn.replace(mark, word)
    return turn
