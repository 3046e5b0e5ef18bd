"""Which media a record shows: the images that are read, and whatever looks like media and would not be.

Images are named under `image` or `images`, one name or a list of them, in the order of their `<image>` marks. Whatever
else names media is a fault of the record, for it would be trained without: other keys (`video`, `audio`, `image_path`,
...) unless they are empty, and other marks (`<video>`, `<audio>`, `<image-1>`, ...) in what a human or the system says.
A mark between backticks, or in a text that closes it (`</video>`), is talk about markup.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN

IMAGE_KEYS = ("image", "images")

_KIND = r"(?:image|img|picture|pic|photo|video|vid|audio|sound|media|frames)s?"
_PLACE = (
    r"(?:path|file|filename|file_?name|name|ur[il]|link|src|bytes|base_?64|b64|data|list|folder|dir|root|content)s?"
)
_MEDIA_KEY = re.compile(rf"(?P<before>\w+_)?{_KIND}(?:_?{_PLACE})?(?:_?\d+)?")
_ADDRESS = re.compile(r"ur[il]s?|links?")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# `<img>` and `<picture>` are left to HTML; with a number or "pad" they mark media, as in other models' data.
_MARK = re.compile(
    r"<\|?(?:(?P<kind>image|video|audio)|(?:image|img|picture|video|audio|speech|sound)[-_ ]?"
    r"(?:\d+|pad|token|placeholder|here))\|?>",
    re.IGNORECASE,
)


def read_images(data: Mapping[Any, Any], name: str) -> tuple[str, ...]:
    """The image files that a record names.

    Args:
        data: the record as parsed.
        name: of the record, for errors.

    Raises:
        ValueError: if a name is empty or of the wrong kind, `image` and `images` differ, or another key names media.
    """
    found = {key: _names(data[key], key, name) for key in IMAGE_KEYS if data.get(key) is not None}
    given = [images for images in found.values() if images]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"record {name!r} names different files under 'image' and 'images'; keep one of the two keys.")
    images = given[0] if given else ()
    unread = unread_media(data, images)
    if unread:
        raise ValueError(
            f"record {name!r} names media under {unread[0]!r}, which is not read; images go under 'image' (a name or a "
            "list of names, in the order of their marks), other media cannot be trained on."
        )
    return images


def unread_media(data: Mapping[Any, Any], images: Sequence[str] = ()) -> list[str]:
    """Keys that seem to name media, besides those that are read.

    Args:
        data: a record or a turn.
        images: that are read; a key that repeats them, or says where they came from, is no fault beside them.
    """
    found = []
    for key, value in data.items():
        if not isinstance(key, str) or key in IMAGE_KEYS or not _can_name_media(value):
            continue
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-\s.]", "_", key).lower()
        match = _MEDIA_KEY.fullmatch(words)
        if match is None:
            continue
        repeated = value in (list(images), *images)
        provenance = bool(images) and (match["before"] or _ADDRESS.search(words))
        if not repeated and not provenance:
            found.append(key)
    return found


def check_marks(turns: Sequence[str], system: str | None, num_images: int, name: str) -> None:
    """See that every image has its mark and every mark its image.

    In a record without images `<image>` may stand in an answer: there it is text, as all that the model says.

    Args:
        turns: texts, human and assistant alternating, the human first.
        system: the record's system prompt.
        num_images: that it names.
        name: of the record, for errors.

    Raises:
        ValueError: if they do not agree, or a text holds another mark of media.
    """
    for text in filter(None, (system, *turns[::2])):
        foreign = [mark for mark in _marks(text) if mark != DEFAULT_IMAGE_TOKEN]
        if foreign:
            raise ValueError(
                f"record {name!r} holds the mark {foreign[0]}, which stands for nothing here; {DEFAULT_IMAGE_TOKEN} "
                "marks an image, and other media cannot be trained on."
            )
    if num_images == 0:
        _require_no_marks(turns, system, name)
        return
    if any(DEFAULT_IMAGE_TOKEN in turn for turn in turns[1::2]):
        raise ValueError(f"record {name!r}: an answer holds {DEFAULT_IMAGE_TOKEN}; only human turns may show images.")
    if system is not None and DEFAULT_IMAGE_TOKEN in system:
        raise ValueError(
            f"record {name!r}: the system prompt holds {DEFAULT_IMAGE_TOKEN}; only human turns may show images."
        )
    marks = sum(turn.count(DEFAULT_IMAGE_TOKEN) for turn in turns)
    if marks != num_images:
        raise ValueError(f"record {name!r} names {num_images} image(s), but has {marks} {DEFAULT_IMAGE_TOKEN} mark(s).")


def _require_no_marks(turns: Sequence[str], system: str | None, name: str) -> None:
    count = sum(_marks(text).count(DEFAULT_IMAGE_TOKEN) for text in filter(None, (system, *turns[::2])))
    if count:
        raise ValueError(
            f"record {name!r} has {count} {DEFAULT_IMAGE_TOKEN} mark(s), but names no image; name it under 'image', or "
            f"write `{DEFAULT_IMAGE_TOKEN}` between backticks where the text is about the mark itself."
        )


def _marks(text: str) -> list[str]:
    """Marks of media in a text, those left out that belong to code or markup."""
    found = _MARK.finditer(_CODE.sub(" ", text))
    return [match[0] for match in found if match["kind"] is None or f"</{match['kind']}>" not in text]


def _names(value: Any, key: str, name: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(image, str) for image in names):
        raise ValueError(f"record {name!r}: {key!r} must be a file name or a list of them.")
    if not all(image.strip() for image in names):
        raise ValueError(
            f"record {name!r}: {key!r} is {value!r}, which names no file; leave the key out where there is no image."
        )
    return tuple(names)


def _can_name_media(value: Any) -> bool:
    """Numbers and truth values count or describe media; empty values are the nothing of tables."""
    return isinstance(value, str | bytes | list | tuple | Mapping) and len(value) > 0
