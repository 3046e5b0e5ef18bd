"""LLaVA's conversation files: reading and checking them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.data.json_stream import iterate_json

FAULTS_TO_SHOW = 5
_SPEAKERS = ("human", "gpt")


@dataclass(frozen=True)
class Record:
    """One conversation: alternating `turns`, the human first, and image files in the order of their marks.

    Attributes:
        id: as the file gives it, or its number there.
        turns: texts.
        images: file names.
        image_folder: where they start, if its source in a mixture has a folder of its own.
        source: name of its source in a mixture.
    """

    id: str
    turns: tuple[str, ...]
    images: tuple[str, ...] = ()
    image_folder: str | None = None
    source: str | None = None

    @property
    def num_words(self) -> int:
        """Words in all turns: a cheap measure of length."""
        return sum(len(turn.replace(DEFAULT_IMAGE_TOKEN, "").split()) for turn in self.turns)


def read_records(path: str | Path) -> list[Record]:
    """Read a JSON list or a JSONL file of LLaVA records into memory; see `iterate_records`."""
    return list(iterate_records(path))


def iterate_records(path: str | Path) -> Iterator[Record]:
    """Read a JSON list or a JSONL file of LLaVA records and check them all, before hours of training.

    Raises:
        ValueError: if the file or a record is not in LLaVA's format. Faulty records are told together, after the
            last good one; the first of them are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no data file {str(path)!r}; check --data_path.")
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
        raise ValueError(f"{path}: {faulty} of {faulty + good} records are unusable:\n  {listed}")
    if not good:
        raise ValueError(f"{path} holds no records.")


def parse_record(data: Any, index: int) -> Record:
    """Check one record; `index` names it where it has no id.

    The image's mark moves to the front of its turn when the turn has one, as LLaVA does. Leading turns that
    are not human are left out. Without images, `<image>` is ordinary text.

    Raises:
        ValueError: if a field is missing or of the wrong kind, turns do not alternate, images and their marks
            do not agree, or a text cannot be written as UTF-8.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"record {index} is {type(data).__name__}, not a mapping with 'conversations'.")
    name = str(data.get("id", index))
    images = data.get("image") or ()
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list | tuple) or not all(isinstance(image, str) for image in images):
        raise ValueError(f"record {name!r}: 'image' must be a file name or a list of them.")
    turns = _turns(data.get("conversations"), name)
    _require_text([name, *images, *turns], name)
    if images:
        turns = [_image_first(turn) for turn in turns]
        _check_marks(turns, len(images), name)
    return Record(name, tuple(turns), tuple(images))


def wrap_image_marks(text: str, use_im_start_end: bool, use_image_tags: bool) -> str:
    """Surround every `<image>` with what the model's options ask for."""
    mark = DEFAULT_IMAGE_TOKEN
    if use_image_tags:
        mark = f"<Image>{mark}</Image>"
    if use_im_start_end:
        mark = mark.replace(DEFAULT_IMAGE_TOKEN, DEFAULT_IM_START_TOKEN + DEFAULT_IMAGE_TOKEN + DEFAULT_IM_END_TOKEN)
    return text.replace(DEFAULT_IMAGE_TOKEN, mark)


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


def _require_text(texts: Sequence[str], name: str) -> None:
    """Half of a surrogate pair, as in a text cut between two escapes, is no character and cannot be stored."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise ValueError(
            f"record {name!r} holds {half}, half of a surrogate pair; write the whole character."
        ) from None


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
