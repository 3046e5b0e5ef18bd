"""What a part of the check is asked to do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.bench.gpu_check.record import ResultLog


class NotHereError(RuntimeError):
    """A part cannot be run on this machine; the message says why."""


@dataclass(frozen=True)
class PartTask:
    """What a part is asked to do.

    Attributes:
        part: its name.
        record: takes its results.
        device: `cuda`, `cuda:1` or `cpu`.
        shape: name of the measured model's shape, of `llava.model.random_weights.SHAPES`.
        cases, tests: folders.
        ends: `time.monotonic()` at which it will be killed.
    """

    part: str
    record: ResultLog
    device: str
    shape: str
    cases: Path
    tests: Path
    ends: float

    def found(self, kind: str, **values: Any) -> None:
        """Write down a result."""
        self.record.add(self.part, kind, **values)

    def left(self) -> float:
        """Seconds until the part is killed."""
        return self.ends - time.monotonic()
