"""LLaVA's conversation files: reading and checking them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN

_SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Record:
    """One conversation: alternating `turns`, the human first, and image files in the order of their marks."""

    id: str
    turns: tuple[str, ...]
    images: tuple[str, ...] = ()

    @property
    def num_words(self) -> int:
        """Words in all turns: a cheap measure of length."""
        return sum(len(turn.replace(DEFAULT_IMAGE_TOKEN, "").split()) for turn in self.turns)


def read_records(path: str | Path) -> list[Record]:
    """Read a JSON list or a JSONL file of LLaVA records and check them all, before hours of training.

    Raises:
        ValueError: if the file or a record is not in LLaVA's format; names the first offenders.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no data file {str(path)!r}; check --data_path.")
    records, faults = [], []
    for index, data in enumerate(_read_json(path)):
        try:
            records.append(parse_record(data, index))
        except ValueError as error:
            faults.append(str(error))
    if faults:
        shown = "\n  ".join(faults[:5])
        raise ValueError(f"{path}: {len(faults)} of {len(faults) + len(records)} records are unusable:\n  {shown}")
    if not records:
        raise ValueError(f"{path} holds no records.")
    return records


def parse_record(data: Any, index: int) -> Record:
    """Check one record; `index` names it where it has no id.

    The image's mark moves to the front of its turn when the turn has one, as LLaVA does. Leading turns that
    are not human are left out. Without images, `<image>` is ordinary text.

    Raises:
        ValueError: if a field is missing or of the wrong kind, turns do not alternate, or images and their
            marks do not agree.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"record {index} is {type(data).__name__}, not a mapping with 'conversations'.")
    name = str(data.get("id", index))
    images = data.get("image") or ()
    images = (images,) if isinstance(images, str) else tuple(images)
    if not all(isinstance(image, str) for image in images):
        raise ValueError(f"record {name!r}: 'image' must be a file name or a list of them.")
    turns = _turns(data.get("conversations"), name)
    if images:
        turns = [_image_first(turn) for turn in turns]
        _check_marks(turns, len(images), name)
    return Record(name, tuple(turns), images)


def wrap_image_marks(text: str, use_im_start_end: bool, use_image_tags: bool) -> str:
    """Surround every `<image>` with what the model's options ask for."""
    mark = DEFAULT_IMAGE_TOKEN
    if use_image_tags:
        mark = f"<Image>{mark}</Image>"
    if use_im_start_end:
        mark = mark.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN)
    return text.replace(DEFAULT_IMAGE_TOKEN, mark)


def _read_json(path: Path) -> Sequence[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        if not text.lstrip().startswith("["):
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is neither a JSON list nor JSON lines: {error}") from error


def _turns(conversations: Any, name: str) -> list[str]:
    if not isinstance(conversations, Sequence) or not all(isinstance(turn, Mapping) for turn in conversations):
        raise ValueError(f"record {name!r}: 'conversations' must be a list of {{'from', 'value'}} mappings.")
    said = [(turn.get("from"), turn.get("value")) for turn in conversations]
    if said and said[0][0] != _SPEAKERS[0]:
        said = said[1:]
    if not said:
        raise ValueError(f"record {name!r} has no human turn.")
    for turn, (speaker, value) in enumerate(said):
        if speaker != _SPEAKERS[turn % 2]:
            raise ValueError(f"record {name!r}: turn {turn} is from {speaker!r}, expected {_SPEAKERS[turn % 2]!r}.")
        if not isinstance(value, str):
            raise ValueError(f"record {name!r}: turn {turn} has no text.")
    return [value for _, value in said]


def _image_first(turn: str) -> str:
    if turn.count(DEFAULT_IMAGE_TOKEN) != 1:
        return turn
    return f"{DEFAULT_IMAGE_TOKEN}\n{turn.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()


def _check_marks(turns: Sequence[str], num_images: int, name: str) -> None:
    if any(DEFAULT_IMAGE_TOKEN in turn for turn in turns[1::2]):
        raise ValueError(f"record {name!r}: an answer holds {DEFAULT_IMAGE_TOKEN}; only human turns may show images.")
    marks = sum(turn.count(DEFAULT_IMAGE_TOKEN) for turn in turns)
    if marks != num_images:
        raise ValueError(f"record {name!r} names {num_images} image(s), but has {marks} {DEFAULT_IMAGE_TOKEN} mark(s).")
