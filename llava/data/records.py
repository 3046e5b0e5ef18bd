"""Reads and checks records of LLaVA's conversation files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.common.shown import shown
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN
from llava.data.json_stream import Ambiguous, iterate_json, require_data_file
from llava.data.media import check_marks, in_order_of_marks, marks_in, read_media, with_video_marks
from llava.data.turns import RecordTurns, read_turns

FAULTS_TO_SHOW = 5
LONGEST_ID = 100
"""Characters of a record's id that a message shows."""


@dataclass(frozen=True)
class Record:
    """One conversation: alternating `turns`, the human first, and the files that it shows, in the order of their marks.

    Attributes:
        id: id in the file, or the record's number there.
        turns: texts, their marks where they were written.
        images: file names.
        image_folder: where they start, if its source in a mixture has a folder of its own.
        source: name of its source in a mixture.
        system: what stands for the template's system prompt in this conversation; None leaves it.
        left_out: turns of the assistant that stood before the first human one, and are not among `turns`.
        videos: names of video files, and of folders of frames.
        video_folder: where they start, as `image_folder`.
    """

    id: str
    turns: tuple[str, ...]
    images: tuple[str, ...] = ()
    image_folder: str | None = None
    source: str | None = None
    system: str | None = None
    left_out: int = 0
    videos: tuple[str, ...] = ()
    video_folder: str | None = None

    @property
    def media(self) -> tuple[tuple[str, str], ...]:
        """Kind (`image` or `video`) and name of every file, in the order of their marks."""
        return in_order_of_marks(self.turns, {"image": self.images, "video": self.videos})

    @property
    def kinds(self) -> frozenset[str]:
        """Kinds of the files that are shown."""
        return frozenset(kind for kind, _ in self.media)

    @property
    def marks_as_text(self) -> list[str]:
        """Marks of media in what the human and the system say that are read as text, in a record without media."""
        return [] if self.media else marks_in([self.system or "", *self.turns[::2]])

    @property
    def num_words(self) -> int:
        """Words in all turns and in the system prompt of its own: a cheap measure of length."""
        texts = (self.system or "", *self.turns)
        marks = (DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN) if self.videos else (DEFAULT_IMAGE_TOKEN,)
        for mark in marks:
            texts = tuple(text.replace(mark, "") for text in texts)
        return sum(len(text.split()) for text in texts)


def read_records(path: str | Path) -> list[Record]:
    """Read a file of LLaVA records into memory; see `iterate_records`."""
    return list(iterate_records(path))


def iterate_records(path: str | Path) -> Iterator[Record]:
    """Read a file of LLaVA records, in a format of `iterate_json`, and check them all, before hours of training.

    Raises:
        ValueError: if the file or a record is not in LLaVA's format. Faulty records are told together, after the
            last good one; the first of them are named.
    """
    path = Path(path)
    require_data_file(path, "check --data_path")
    good, faulty = 0, 0
    shown: list[str] = []
    for index, data in enumerate(iterate_json(path)):
        try:
            record = parse_record(data, index)
        except ValueError as error:
            faulty += 1
            shown += [str(error)] if len(shown) < FAULTS_TO_SHOW else []
            continue
        good += 1
        yield record
    if faulty:
        listed = "\n  ".join(shown)
        raise ValueError(
            f"{path}: {faulty} of {faulty + good} records are unusable:\n  {listed}\n"
            "python -m llava.data.check names them all, and --write-clean writes a file without them."
        )
    if not good:
        raise ValueError(f"{path} holds no records.")


def parse_record(data: Any, index: int) -> Record:
    """Check one record; `index` names it where it has no id.

    See `llava.data.turns` for roles and system prompts, `llava.data.media` for images, videos and their marks, which
    stay where they are; each family puts them where its training does.

    Raises:
        ValueError: if it is `Ambiguous`, a field is missing or of the wrong kind, turns do not alternate, media and
            their marks do not agree, media are named that are not read, or a text cannot be written as UTF-8.
    """
    if isinstance(data, Ambiguous):
        raise ValueError(f"record {index} ({data.place}): {data.reason}.")
    if not isinstance(data, Mapping):
        packed = isinstance(data, list) and bool(data) and all(isinstance(one, Mapping) for one in data)
        advice = "; records that are packed into lists, as for Qwen, have to stand one by one" if packed else ""
        raise ValueError(f"record {index} is {type(data).__name__}, not a mapping with 'conversations'{advice}.")
    identity = _identity(data.get("id"), index)
    name = identity if len(identity) <= LONGEST_ID else f"{identity[:LONGEST_ID]}..."
    media = read_media(data, name)
    parsed = read_turns(data, name)
    _require_text(identity, media, parsed, name)
    turns = with_video_marks(parsed.turns, media)
    check_marks(turns, parsed.system, {kind: len(files) for kind, files in media.items()}, name)
    return Record(
        identity, turns, media["image"], system=parsed.system, left_out=parsed.left_out, videos=media["video"]
    )


def wrap_image_marks(text: str, use_im_start_end: bool, use_image_tags: bool) -> str:
    """Surround every `<image>` with what the model's options ask for."""
    mark = DEFAULT_IMAGE_TOKEN
    if use_image_tags:
        mark = f"<Image>{mark}</Image>"
    if use_im_start_end:
        mark = mark.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN)
    return text.replace(DEFAULT_IMAGE_TOKEN, mark)


def _identity(value: Any, index: int) -> str:
    """The id of a record as text; its number where it has none."""
    if value is None or value == "":
        return str(index)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"record {index}: 'id' is {shown(value)}; it must be text or a number.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"record {index}: 'id' is {value}; it must be text or a finite number.")
    return str(value)


def _require_text(identity: str, media: Mapping[str, Sequence[str]], turns: RecordTurns, name: str) -> None:
    """Refuse a text with half of a surrogate pair, as a cut between two escapes leaves: UTF-8 cannot hold it."""
    try:
        "".join((identity, *media["image"], *media["video"], *turns.turns, turns.system or "")).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        fields = {"'id'": identity, "the system prompt": turns.system or ""}
        fields |= {f"the {kind} name {shown(file, 60)}": file for kind, files in media.items() for file in files}
        sides = ("question", "answer")
        fields |= {f"{sides[number % 2]} {number // 2 + 1}": turn for number, turn in enumerate(turns.turns)}
        where = next(field for field, text in fields.items() if half in text)
        raise ValueError(
            f"record {name!r} holds U+{ord(half):04X}, half of a surrogate pair, in {where}; write the whole character."
        ) from None
