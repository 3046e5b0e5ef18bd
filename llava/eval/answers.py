"""The answer file of one benchmark, written so that a kill at any moment loses nothing that was answered.

While questions are answered each process appends to a part of its own, `gqa.answers.rank0.jsonl`. When they are
through, and at the start of the next run after a kill, the parts are merged into `gqa.answers.jsonl`, in the order of
the question file; only then are they removed.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.eval.questions import Question, answer_keys, question_keys


@dataclass(frozen=True)
class AnswerFile:
    """An answer file and its parts.

    Attributes:
        path: of the whole file.
    """

    path: Path

    def part(self, rank: int) -> Path:
        """Where one process appends."""
        return self.path.with_suffix(f".rank{rank}.jsonl")

    def parts(self) -> list[Path]:
        """The parts that are there."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.rank*.jsonl"))

    def append(self, rank: int, lines: Sequence[dict[str, Any]]) -> None:
        """Add lines to a part; they are on the disk when this returns."""
        with self.part(rank).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All lines, of the file and of its parts; a last line that a kill cut short is left out.

        Raises:
            ValueError: if another line is not a JSON object.
        """
        lines = [line for path in (self.path, *self.parts()) if path.exists() for line in _read(path)]
        named = {line.get("answer_id") or f"line {number}": line for number, line in enumerate(lines)}
        return list(named.values())

    def answered(self, questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
        """The line of each question that was answered, by the question's number, in order.

        Raises:
            ValueError: if a line is no answer.
        """
        lines = self.read()
        by_key = dict(zip(answer_keys(lines), lines, strict=True))
        keys = enumerate(question_keys(questions))
        return {number: by_key[key] for number, key in keys if key in by_key}

    def merge(self, questions: Sequence[Question]) -> dict[int, dict[str, Any]]:
        """Write the whole file in the order of the questions, in one step, and remove the parts.

        Returns:
            as `answered`.
        """
        answered = self.answered(questions)
        parts = self.parts()
        if parts:
            unfinished = self.path.with_name(self.path.name + ".unfinished")
            with unfinished.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in answered.values())
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, self.path)
        for part in parts:
            part.unlink()
        return answered

    def remove(self) -> None:
        """Forget all answers."""
        for path in (self.path, *self.parts()):
            path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs from answering into the same file meanwhile; a kill opens the lock.

        Raises:
            ValueError: if another run is at it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.name}.lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f"Another run is writing {self.path}; wait for it or stop it, or choose another place."
                ) from error
            yield


def _read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file; what stands behind the last line break is unfinished."""
    *whole, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}); remove the line or the file.") from error
        if not isinstance(line, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; remove the line or the file.")
        lines.append(line)
    return lines
