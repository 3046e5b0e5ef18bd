"""Keys of a record or a question that name media, and which of them only repeat the files that are read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_KEYS = ("image", "images")
VIDEO_KEYS = ("video", "videos")

_PLACE = (
    r"(?:file_?|full_?|rel_?|abs_?|local_?)?path|file|file_?name|name|ur[il]|link|src|bytes|base_?64|b64|data|list|folder|"
    r"dir|directory|root|content"
)
_ORDER = (
    r"first|second|third|fourth|one|two|three|four|left|right|before|after|other|another|next|last|previous|prev|"
    r"reference|ref|target|query|extra|additional|more|edited|mask|depth|pair"
)
_ORDERED = rf"_?\d+|_[a-gi-vz]|[ab](?![a-z])|_(?:{_ORDER})(?![a-z])"  # not `image_w`, `image_h`, which are sizes
_STATE = "the|original|orig|source|src|raw|full|hd|large|small|preview|thumbnail|thumb|web"
_MEDIA_KEY = re.compile(
    r"(?P<before>\w+_)?(?P<kind>image|img|picture|pic|photo|video|vid|audio|sound|media|frames)s?"
    rf"(?P<order>{_ORDERED})?(?:_?(?P<place>{_PLACE})s?)?(?P<number>{_ORDERED})?"
)
_MEDIA_WORD = re.compile(r"(?:.*_)?(?:image|img|picture|pic|photo|video|vid|audio|frame|clip)s?(?:_.*)?")
_MEDIA_FILE = re.compile(
    r"\S+\.(?:jpe?g|png|bmp|webp|gif|tiff?|mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg|m4a)", re.IGNORECASE
)
_STILL = ("image", "img", "picture", "pic", "photo", "media")
_MOVING = ("video", "vid", "media")
# `original_image`: the image in another state, or where it was taken from. Any other word may name one more image.
_SAME_IMAGE = re.compile(rf"(?:(?:{_STATE})_)+")
_WHENCE = re.compile(rf"(?:.*_)?(?:{_STATE}|ur[il]s?|links?)(?:_.*)?")
_NO_MEDIA = re.compile(r"(?:has|have|is|with|num|number_of|n)_")  # `num_images`: tables may hold these as text
_FOLDERS = ("folder", "dir", "directory", "root")
_ADDRESSES = ("url", "uri", "link")
_ORIGINS = ("data", "src", "content")
_WORD = re.compile(r"[\w-]{1,40}")
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}\Z")


def unread_media(data: Mapping[Any, Any], images: Sequence[str] = (), videos: Sequence[str] | None = None) -> list[str]:
    """Keys that seem to name media, besides those that are read.

    Beside files that are read, a key is no fault if it says the same again, or where they came from:

    - any key whose value is a name of such a file, written longer or shorter (`1.jpg`, `coco/1.jpg`,
      `/data/coco/1.jpg`, `1`), a list of such names, or a folder that it lies in;
    - `image_folder`, `image_dir`, `image_root`, and addresses (`image_url`), and the same of videos;
    - `image_data`, `image_src` with one plain word, such as the name of a data set;
    - `original_image`, `source_image` and the like.

    With a number, a letter or a word of order (`image_2`, `image_b`, `second_image`) a key names another image. Keys
    with the word image, video or the like and anything else (`image_alt`) name media if their value is such a file.

    Args:
        data: a record, a turn or a question.
        images: that are read.
        videos: that are read; None where the keys of videos are not.
    """
    read = [*images, *(videos or ())]
    keys = IMAGE_KEYS if videos is None else IMAGE_KEYS + VIDEO_KEYS
    found = []
    for key, value in data.items():
        if not isinstance(key, str) or key in keys:
            continue
        if not _can_name_media(value):
            continue
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-\s.]", "_", key).lower()
        match = _MEDIA_KEY.fullmatch(words)
        if match is None and not (_MEDIA_WORD.fullmatch(words) and _names_files(value)):
            continue
        if match is not None and _NO_MEDIA.fullmatch(match["before"] or ""):
            continue
        kinds = (_STILL if images else ()) + (_MOVING if videos else ())
        whence = _WHENCE.fullmatch(words) if match is None else _says_whence(match, value, kinds)
        if not (read and (_repeats(value, read) or whence)):
            found.append(key)
    return found


def _names_files(value: Any) -> bool:
    """Whether a value is the name of an image, video or audio file, or a list with one."""
    values = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(name, str) and _MEDIA_FILE.fullmatch(name.strip()) for name in values)


def _repeats(value: Any, images: Sequence[str]) -> bool:
    """Whether a value names files that are read, or a folder of one, and nothing else."""
    if isinstance(value, list | tuple):
        return all(isinstance(name, str) and _repeats(name, images) for name in value)
    if not isinstance(value, str):
        return False
    return any(_same_file(_parts(value), _parts(image)) for image in images)


def _same_file(given: list[str], image: list[str]) -> bool:
    *folders, file = image
    for name in (image, [*folders, _EXTENSION.sub("", file)]):
        shorter = min(len(given), len(name))
        if shorter and given[-shorter:] == name[-shorter:]:
            return True
    return any(given == folders[start : start + len(given)] for start in range(len(folders))) and bool(given)


def _parts(name: str) -> list[str]:
    return [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]


def _says_whence(match: re.Match[str], value: Any, kinds: Sequence[str]) -> bool:
    """Whether a key beside files of some kinds says where they came from."""
    if match["number"] or match["order"]:
        return False
    before, place = match["before"], match["place"]
    if before:
        return _SAME_IMAGE.fullmatch(before) is not None
    if place in _ADDRESSES:
        return True
    if match["kind"] not in kinds:
        return False
    return place in _FOLDERS or (place in _ORIGINS and isinstance(value, str) and bool(_WORD.fullmatch(value)))


def _can_name_media(value: Any) -> bool:
    """Numbers and truth values count or describe media; empty values are the nothing of tables."""
    return isinstance(value, str | bytes | list | tuple | Mapping) and len(value) > 0
