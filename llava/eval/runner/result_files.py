"""Paths of result files; a name of a model, budget or benchmark becomes one component of a path."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from llava.common.shown import shown
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.answer_settings import SETTINGS_SUFFIX
from llava.eval.scoring.benchmark_result import RESULT_SUFFIX

LONGEST_NAME = 200
"""Bytes of a name; file systems take 255, and parts, locks and unfinished files add to it."""


@dataclass(frozen=True)
class BenchmarkFiles:
    """Where everything about one benchmark lies, for one model under one budget.

    Attributes:
        folder: folder of the model and budget.
        name: name of the benchmark.
    """

    folder: Path
    name: str

    @property
    def answers(self) -> AnswerFile:
        """Answers in LLaVA's format."""
        return AnswerFile(self.folder / f"{self.name}.answers.jsonl")

    @property
    def settings(self) -> Path:
        """What the answers belong to."""
        return self.folder / f"{self.name}{SETTINGS_SUFFIX}"

    @property
    def result(self) -> Path:
        """The result file."""
        return self.folder / f"{self.name}{RESULT_SUFFIX}"

    @property
    def reviews(self) -> Path:
        """Verdicts of the judge."""
        return self.folder / f"{self.name}.reviews.jsonl"

    @property
    def submission(self) -> Path:
        """What a server takes, without suffix."""
        return self.folder / f"{self.name}.submission"

    def clear(self) -> None:
        """Remove all of these files."""
        self.answers.remove()
        for path in (self.settings, self.result, self.reviews, *self.folder.glob(f"{self.name}.submission.*")):
            path.unlink(missing_ok=True)


def folder_name(name: str) -> str:
    """A name as the folder of its results has it: the same, but for one that is too long, which is cut and gets a
    digest.

    Raises:
        ValueError: if it would lead to another folder, or no file system takes it.
    """
    content = os.fsencode(name) if _is_encodable(name) else b""
    if name in ("", os.curdir, os.pardir) or os.sep in name or "\0" in name or not content:
        raise ValueError(f"{shown(name)} cannot name a folder of results; rename the folder or file of that name.")
    if len(content) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[: LONGEST_NAME - 9].decode('utf-8', 'ignore')}-{digest}"


def result_file(place: str | Path, flag: str) -> Path:
    """The path of a file that results are written to; that it is not read as well is for `llava.common.outputs` to say.

    Args:
        place: file or folder as it was given.
        flag: that it was given with.

    Raises:
        ValueError: if it names no file, a folder or a device.
    """
    text, path = str(place), Path(place).expanduser()
    needed = f"{flag} is {shown(text)}; it must name a file"
    if not text.strip() or "\0" in text or not _is_encodable(text):
        raise ValueError(f"{needed}, in characters that a file system takes.")
    if text.endswith(os.sep) or text.endswith(f"{os.sep}.") or path.name in ("", os.curdir, os.pardir):
        raise ValueError(f"{needed}, not a folder.")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise ValueError(f"{needed} with a name of at most {LONGEST_NAME} bytes.")
    if (path.exists() or path.is_symlink()) and not path.is_file():
        kind = "a folder" if path.is_dir() else "neither a file nor a new name"
        raise ValueError(f"{needed}, but this is {kind}.")
    return path


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
