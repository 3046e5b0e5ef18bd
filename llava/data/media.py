"""Which media a record shows: the images and videos that are read, and whatever looks like media and would not be.

Images are named under `image` or `images`, videos under `video` or `videos`: one name or a list of them, in the order
of their `<image>` and `<video>` marks. A record with videos alone may mark them with `<image>`, as LLaVA-NeXT's do.
Whatever else names media is a fault of the record, for it would be trained without: other keys (`audio`, `image_path`,
...) unless they are empty or repeat the files (see `llava.data.media_keys`), and marks (`<image>`, `<video>`,
`<audio>`, `<image-1>`, ...) without their media in what a human or the system says:

- In a record that names media, any mark that is not one of its files' is a fault.
- In others too, but for running prose about markup or commands ("the <video> element in HTML5", "docker run <image>
  fails"; it holds code or a word of `_TALK`), where a mark is text unless it stands as media do: at the beginning or
  end of a turn, or alone on a line, but for a label such as "Image 1:".
- A mark next to a closing tag or to one with attributes (`<audio> <source src="a.mp3">`) is text, as all that the model
  says. The data check warns about marks that are read as text.
- A mark between backticks, or in a text that closes it (`</video>`), is talk about markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava.common.shown import printable, shown
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.media_keys import IMAGE_KEYS, VIDEO_KEYS, unread_media

KEYS = {"image": IMAGE_KEYS, "video": VIDEO_KEYS}
MARKS = {"image": DEFAULT_IMAGE_TOKEN, "video": DEFAULT_VIDEO_TOKEN}
"""What stands for each kind of media in a text."""

_ASKED_OF_ONE = (
    "nframes",
    "min_frames",
    "max_frames",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
)
"""What Qwen's `qwen_vl_utils` heeds beside the name of an image or a video."""
_ASKED_OF_VIDEO = ("fps", "num_frames")
"""Further ones beside a video: frames a second that `qwen_vl_utils` takes, and how many frames lmms-finetune takes."""
_OF_CLIPS = ("video_start", "video_end", "start", "end", "start_frame", "end_frame")
"""Where a clip lies within its video, in the forms of `qwen_vl_utils` and of Cambrian-S; whole videos are read."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# `<img>` and `<picture>` are left to HTML; with a number or "pad" they mark media, as in other models' data.
_MARK = re.compile(
    r"<\|?(?:(?P<kind>image|video|audio)|(?:image|img|picture|video|audio|speech|sound)[-_ ]?"
    r"(?:\d+|pad|token|placeholder|here))\|?>",
    re.IGNORECASE,
)
# What data sets put around a mark, the words of a line in front of one, and other signs that are no words.
_FRAME = re.compile(r"</?(?:image|img|im_start|im_end)>|<\|vision_(?:start|end)\|>", re.IGNORECASE)
_LABEL = re.compile(r"\A\s*+(?:[\w#-]++[ \t]?+){0,3}[:.)]")
_TAG = r"<(?!/?(?i:image|img)>)(?:/[A-Za-z][\w-]*|[A-Za-z][\w-]*\s[^<>]*=[^<>]*)>"
_TAG_BEHIND = re.compile(rf"\s*{_TAG}")
_TAG_BEFORE = re.compile(rf"{_TAG}\s*\Z")
_TALK = re.compile(
    r"\b(?:html5?|xhtml|svg|xml|css|jsx|tsx|javascript|react|vue|next\.?js|markup|tags?|elements?|components?|attributes?|"
    r"docker|podman|kubectl|syntax|placeholders?)\b",
    re.IGNORECASE,
)
"""Words of a text that is about markup or commands."""
_ANY_MARK = re.compile("|".join(MARKS.values()))
_AROUND = " \t\r\ufeff\u200b.,;:!?()[]{}\"'*#>-"


def read_media(data: Mapping[Any, Any], name: str) -> dict[str, tuple[str, ...]]:
    """The files that a record names, by kind.

    Args:
        data: the record as parsed.
        name: name of the record, for errors.

    Raises:
        ValueError: if a name is empty or of the wrong kind, `image` and `images` (or `video` and `videos`) differ,
            another key names media, or one asks for a part of a video, or for a size or a number of frames of its own.
    """
    media = {kind: _read_kind(data, kind, name) for kind in KEYS}
    unread = unread_media(data, media["image"], media["video"])
    if unread:
        raise ValueError(
            f"record {name!r} names media under {shown(unread[0])}, which is not read; images go under 'image', videos "
            "under 'video' (a name or a list of names, in the order of their marks), other media cannot be trained on."
        )
    heeded_elsewhere: tuple[str, ...] = _ASKED_OF_ONE if any(media.values()) else ()
    heeded_elsewhere += (*_ASKED_OF_VIDEO, *_OF_CLIPS) if media["video"] else ()
    asked = [key for key in heeded_elsewhere if data.get(key) not in (None, "")]
    if asked and asked[0] in _OF_CLIPS:
        raise ValueError(
            f"record {name!r} names a part of its media under {asked[0]!r}: {shown(data[asked[0]])}, but videos are "
            "shown whole; cut the file and leave the key out."
        )
    if asked:
        raise ValueError(
            f"record {name!r} has {asked[0]!r}: {shown(data[asked[0]])}, which is not heeded for single images and "
            "videos; leave it out. Flags such as --max_pixels, --video_fps and --video_max_frames hold for all."
        )
    return media


def _read_kind(data: Mapping[Any, Any], kind: str, name: str) -> tuple[str, ...]:
    one, several = KEYS[kind]
    empty = (None, "") if kind == "video" else (None,)
    found = {key: _names(data[key], key, kind, name) for key in KEYS[kind] if data.get(key) not in empty}
    given = [files for files in found.values() if files]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"record {name!r} names different files under {one!r} and {several!r}; keep one of the two.")
    return given[0] if given else ()


def with_video_marks(turns: Sequence[str], media: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Turns in which every video is marked with `<video>`: a record with videos alone may mark them with `<image>`.

    Args:
        turns: texts, human and assistant alternating, the human first.
        media: file names by kind.
    """
    asked = "".join(turns[::2])
    borrowed = media["video"] and not media["image"] and DEFAULT_VIDEO_TOKEN not in asked
    if not borrowed or asked.count(DEFAULT_IMAGE_TOKEN) != len(media["video"]):
        return tuple(turns)
    return tuple(
        turn if number % 2 else turn.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)
        for number, turn in enumerate(turns)
    )


def in_order_of_marks(turns: Sequence[str], media: Mapping[str, Sequence[str]]) -> tuple[tuple[str, str], ...]:
    """Kind and name of every file, in the order in which human turns mark them; files without a mark come last.

    Args:
        turns: texts, human and assistant alternating, the human first.
        media: file names by kind.
    """
    waiting = {MARKS[kind]: [(kind, name) for name in names] for kind, names in media.items()}
    marks = (mark for turn in turns[::2] for mark in _ANY_MARK.findall(turn))
    ordered = [waiting[mark].pop(0) for mark in marks if waiting[mark]]
    return (*ordered, *(file for files in waiting.values() for file in files))


def check_marks(turns: Sequence[str], system: str | None, counts: Mapping[str, int], name: str) -> None:
    """See that every image and every video has its mark, and every mark its file.

    Marks in answers are text, and in a record without media those in prose about markup.

    Args:
        turns: texts, human and assistant alternating, the human first.
        system: the record's system prompt.
        counts: files that it names, by kind.
        name: name of the record, for errors.

    Raises:
        ValueError: if they do not agree, or a text holds another mark of media; see the module.
    """
    texts = [text for text in (system, *turns[::2]) if text]
    found = [mark for text in texts for mark in (_marks(text) if any(counts.values()) else _marks_of_media(text))]
    foreign = [mark for mark in found if mark not in MARKS.values()]
    if foreign:
        raise ValueError(
            f"record {name!r} holds the mark {foreign[0]}, which stands for nothing here; {DEFAULT_IMAGE_TOKEN} "
            f"marks an image, {DEFAULT_VIDEO_TOKEN} a video, and other media cannot be trained on. Write the mark "
            "between backticks where the text is about the mark itself."
        )
    for kind, count in counts.items():
        mark, (key, _) = MARKS[kind], KEYS[kind]
        if count == 0 and mark in found:
            held = f"has {found.count(mark)} {mark} mark(s)" if kind == "image" else f"holds the mark {mark}"
            raise ValueError(
                f"record {name!r} {held}, but names no {kind}; name it under {key!r}, or write `{mark}` between "
                "backticks where the text is about the mark itself."
            )
        if count:
            _require_marks(turns, system, kind, count, name)


def _require_marks(turns: Sequence[str], system: str | None, kind: str, count: int, name: str) -> None:
    """See that human turns mark every file of a kind, and the system none."""
    mark = MARKS[kind]
    if system is not None and mark in system:
        raise ValueError(f"record {name!r}: the system prompt holds {mark}; only human turns may show {kind}s.")
    marks, in_answers = (sum(turn.count(mark) for turn in turns[side::2]) for side in (0, 1))
    if marks != count:
        besides = f" in human turns; {in_answers} more in answers, which show no {kind}s" if in_answers else ""
        raise ValueError(f"record {name!r} names {count} {kind}(s), but has {marks} {mark} mark(s){besides}.")


def marks_in(texts: Sequence[str]) -> list[str]:
    """Marks of media in texts of a record without media that passed `check_marks`: they are read as text.

    Args:
        texts: texts of the human or the system.
    """
    return [mark for text in texts for mark in _marks(text)]


def _marks(text: str) -> list[str]:
    """Marks of media in a text, those left out that belong to code or closed markup."""
    return [match[0] for match in _found(_CODE.sub(" ", text))]


def _marks_of_media(text: str) -> list[str]:
    """Those marks of a text without media that are not talk about markup."""
    if _MARK.search(text) is None:
        return []
    prose = _CODE.sub("`", text).strip()  # what is code stays something beside a mark
    only_marks = {start for start, line in _lines(prose) if _MARK.search(line) and not _beside(line)}
    talk, found = bool(_TALK.search(text) or _CODE.search(text)), []
    for match in _found(prose):
        alone = prose.rfind("\n", 0, match.start()) + 1 in only_marks
        around = prose[: match.start()], prose[match.end() :]
        at_end = any(not _unmarked(side).strip() for side in around)
        if (alone or at_end or not talk) and not _in_markup(prose, match):
            found.append(match[0])
    return found


def _unmarked(text: str) -> str:
    return _FRAME.sub("", _MARK.sub("", text))


def _beside(line: str) -> str:
    """What a line says besides its marks and a label such as "Image 1:"."""
    return _LABEL.sub("", _unmarked(line), count=1).strip(_AROUND)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _in_markup(text: str, match: re.Match[str]) -> bool:
    """Whether a mark stands next to a tag that has attributes or closes something."""
    return bool(_TAG_BEHIND.match(text, match.end()) or _TAG_BEFORE.search(text[: match.start()]))


def _found(text: str) -> list[re.Match[str]]:
    return [match for match in _MARK.finditer(text) if match["kind"] is None or f"</{match['kind']}>" not in text]


def _contents(files: Sequence[Any]) -> str:
    """What stands in place of names, in words; Hugging Face's tables hold images as {bytes, path}."""
    file = next(file for file in files if isinstance(file, bytes | Mapping))
    if isinstance(file, bytes):
        return "bytes"
    return f"a mapping of {', '.join(printable(str(key), 60) for key in list(file)[:5]) or 'nothing'}"


def _names(value: Any, key: str, kind: str, name: str) -> tuple[str, ...]:
    names = [value] if isinstance(value, str | bytes | Mapping) else value
    if isinstance(names, list | tuple) and any(isinstance(file, bytes | Mapping) for file in names):
        raise ValueError(
            f"record {name!r}: {key!r} must be a file name or a list of them, but holds {_contents(names)}; write the "
            f"{kind}s out as files, and name these under {key!r}."
        )
    if not isinstance(names, list | tuple) or not all(isinstance(file, str) for file in names):
        raise ValueError(f"record {name!r}: {key!r} is {shown(value)}; it must be a file name or a list of them.")
    if not all(file.strip() for file in names):
        raise ValueError(
            f"record {name!r}: {key!r} is {shown(value)}, which names no file; leave the key out where there is no "
            f"{kind}."
        )
    return tuple(names)
