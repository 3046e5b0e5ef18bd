"""Kinds of findings of a data check, each with its severity and what it means for training."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Severity(StrEnum):
    """ERROR: training would stop at the record, or it has no label. WARNING: training runs, but it looks wrong."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class FindingKind:
    """A kind of fault: its severity and, in a phrase, what it means for training."""

    severity: Severity
    meaning: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault of one record: a key of `KINDS`, and the particulars."""

    kind: str
    detail: str

    @property
    def is_error(self) -> bool:
        """Whether the record must be left out."""
        return KINDS[self.kind].severity is Severity.ERROR


def _error(meaning: str) -> FindingKind:
    return FindingKind(Severity.ERROR, meaning)


def _warning(meaning: str) -> FindingKind:
    return FindingKind(Severity.WARNING, meaning)


# In the order of the report.
KINDS = {
    "not_json": _error("the line is not JSON; training refuses the file"),
    "ambiguous": _error("a key comes twice, or a number is not finite; training refuses the file"),
    "schema": _error("not in LLaVA's format; training refuses the file"),
    "not_encodable": _error("the template or the tokenizer cannot take the conversation"),
    "no_labels": _error("no answer is left to learn from"),
    "image_outside_folder": _error("the image's name leads out of --image-folder"),
    "image_missing": _error("there is no such image file"),
    "image_unreadable": _error("the image file cannot be opened: its rights, its name, the disk or the network drive"),
    "image_empty": _error("the image file has no bytes"),
    "not_an_image": _error("the file is no image, for instance a web page saved as one"),
    "image_broken": _error("the image cannot be decoded: cut off or damaged"),
    "image_bomb": _error("decoding or padding the image would take unreasonable memory"),
    "video_unshown": _error("the record shows a video, but the model is trained on images alone; see --model"),
    "video_outside_folder": _error("the video's name leads out of --video-folder"),
    "video_missing": _error("there is no such video"),
    "video_unreadable": _error("the video cannot be opened: its rights, its name, the disk or the network drive"),
    "video_empty": _error("the video has no bytes, or its folder no frames"),
    "video_broken": _error("the frames that are shown cannot be decoded: cut off, damaged, or no video"),
    "video_bomb": _error("decoding the video's frames would take unreasonable memory"),
    "unexpected": _error("checking the record raised an error that nobody foresaw; training would too"),
    "worker_died": _error("the process that checked the record died, probably for lack of memory"),
    "duplicate_id": _warning("an earlier record has the same id"),
    "truncated": _warning("longer than --model-max-length; the end is cut off"),
    "blank_answer": _warning("one of the answers is blank; only its end mark is learnt"),
    "leading_answer": _warning("an answer stands before the first question; it is left out, as in LLaVA"),
    "turns_unread": _warning("the template `plain` teaches the first answer only; later turns are left out"),
    "mark_in_answer": _warning("<image> stands in an answer, where it is read as text"),
    "mark_in_prose": _warning("a mark such as <image> or <video> stands in prose without media, and is read as text"),
    "image_mislabelled": _warning("the file's format is not what its name says; Pillow opens it all the same"),
    "image_cmyk": _warning("colours for print; they shift when converted to RGB"),
    "image_deep": _warning("more than 8 bits a channel; the rest is dropped, or clipped by --image-opening llava"),
    "image_animated": _warning("several frames; only the first is seen"),
    "image_transparent": _warning("transparent parts are white; --image-opening llava shows what they hide"),
    "image_rotated": _warning("its rotation mark turns the image upright; --image-opening llava leaves it lying"),
    "image_thin": _warning("very long and thin: almost everything is padding, or is cropped away"),
    "image_large": _warning("so many pixels that opening it slows training down"),
    "video_short": _warning("fewer frames than are shown; some are shown several times"),
    "image_tiny": _warning("smaller than one patch of the tower; often a placeholder for a lost picture"),
}


class Fit(NamedTuple):
    """A record as one budget leaves it, after cutting, and what the cut did.

    `text` and `visual` are tokens.
    """

    text: int
    images: int
    truncated: bool
    supervised: bool
    videos: int = 0
    visual: int = 0


@dataclass(frozen=True, slots=True)
class TextOutcome:
    """What was learnt about one record without opening its images.

    Attributes:
        id: id of the record; None where it gives none.
        images: names of its image files.
        num_words: the trainer's measure of length.
        fits: one for every budget; empty where the record cannot be encoded.
        findings: what is wrong with it.
        videos: names of its videos.
    """

    id: str | None = None
    images: tuple[str, ...] = ()
    num_words: int = 0
    fits: tuple[Fit, ...] = ()
    findings: tuple[Finding, ...] = ()
    videos: tuple[str, ...] = ()
