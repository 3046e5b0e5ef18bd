"""The answer file of one benchmark, written so that a kill at any moment loses nothing that was answered.

While questions are answered each process appends to a part of its own, `gqa.answers.run-5c0f21e7.rank0.jsonl`. When
they are through, and at the start of the next run after a kill, the parts are merged into `gqa.answers.jsonl`, in the
order of the question file; only then are they removed. The name of the run stands in the settings file, and a run that
goes on keeps it. Parts of other runs come from processes that outlived a run which was given up; nothing in them is
believed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from llava.common.folder_lock import alone_in
from llava.common.json_lines import LARGEST, append_lines, read_objects, write_lines
from llava.common.outside_files import read_bytes
from llava.eval.benchmarks.answer_lines import answer_keys, check_answer, with_text
from llava.eval.benchmarks.questions import Question, question_keys


@dataclass(frozen=True)
class AnswerFile:
    """An answer file and the parts of one run.

    Attributes:
        path: path of the whole file.
        run: whose parts belong to it, 8 random hexadecimal digits; empty where that is not known yet, then none do.
    """

    path: Path
    run: str = ""

    def part(self, rank: int) -> Path:
        """The file that the process of a rank appends to."""
        return self.path.with_name(f"{self.path.stem}.run-{self.run}.rank{rank}.jsonl")

    def parts(self) -> list[Path]:
        """The existing parts of this run."""
        return [path for path in self.all_parts() if path.name.startswith(f"{self.path.stem}.run-{self.run}.")]

    def all_parts(self) -> list[Path]:
        """The existing parts of any run."""
        name = re.compile(rf"{re.escape(self.path.stem)}\.run-[0-9a-f]+\.rank[0-9]+\.jsonl")
        folder = self.path.parent
        return sorted(path for path in folder.iterdir() if name.fullmatch(path.name)) if folder.is_dir() else []

    def append(self, rank: int, lines: Sequence[dict[str, Any]]) -> None:
        """Add lines to a part; they are on the disk when this returns.

        Raises:
            OSError: if they cannot be written; names the file, which holds what it held before.
        """
        with FileIO(self.part(rank), "a") as file:
            append_lines(file, lines)

    def read(self) -> list[dict[str, Any]]:
        """All lines, of the file and of its parts; a last line that a kill cut short is left out.

        Raises:
            ValueError: if another line is not a JSON object with a text.
        """
        named: dict[str, dict[str, Any]] = {}
        for path in (self.path, *self.parts()):
            for number, line in enumerate(_read(path), start=1):
                if "text" not in line:
                    raise ValueError(
                        f"{path}, answer {number} has no text; an answer line needs question_id, prompt and text. "
                        "Remove the line or the file."
                    )
                check_answer(with_text(line), f"{path}, answer {number}")
                named[line.get("answer_id") or f"line {number} of {path.name}"] = with_text(line)
        return list(named.values())

    def answered(self, questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
        """The line of each question that was answered, by the question's number, in order.

        Raises:
            ValueError: if a line is no answer.
        """
        lines = self.read()
        try:
            keys = answer_keys(lines)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        by_key = dict(zip(keys, lines, strict=True))
        numbered = enumerate(question_keys(questions))
        return {number: by_key[key] for number, key in numbered if key in by_key}

    def merge(self, questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
        """Write the whole file in the order of the questions, in one step, and remove all parts.

        Returns:
            as `answered`.
        """
        answered = self.answered(questions)
        if self.parts():
            write_lines(self.path, answered.values(), sync=True)
        for part in self.all_parts():
            part.unlink(missing_ok=True)
        return answered

    def remove(self) -> None:
        """Remove the file and the parts of any run."""
        for path in (self.path, *self.all_parts()):
            path.unlink(missing_ok=True)

    def set_aside(self) -> Path:
        """Give the file another name that no file has, parts of any run put behind it; returns its new path."""
        names = (f"{self.path.name}.former{number or ''}" for number in range(10**6))
        former = next(path for path in map(self.path.with_name, names) if not path.exists())
        if self.path.exists():
            os.replace(self.path, former)
        for part in self.all_parts():
            content = read_bytes(part, LARGEST)
            with former.open("ab") as file:
                file.write(content if content.endswith(b"\n") else content + b"\n")  # what is torn stays on its line
            part.unlink()
        return former

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from answering into the same file meanwhile; a kill opens the lock.

        Raises:
            ValueError: if another run is at it.
        """
        hint = "wait for it or stop it, or choose another place"
        with alone_in(self.path.parent, f"Another run is writing {self.path}", hint, f".{self.path.name}.lock"):
            yield


def _read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file; what stands behind the last line break is unfinished."""
    return read_objects(path, "remove the line or the file", torn_end=True) if path.exists() else []
