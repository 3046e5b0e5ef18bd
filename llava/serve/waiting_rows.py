"""Answers that wait for the model: those that can be computed together are taken together, first come first served."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from llava.compression.config import CompressionConfig
from llava.data.families.base import Sample
from llava.inference.row_batches import RowAnswer
from llava.inference.row_sampling import RowSettings
from llava.serve.limits import ServingLimits


class AnswerSink(Protocol):
    """Where an answer goes; called in the thread of the model."""

    def shown(self, piece: str) -> None:
        """More of its text."""

    def answered(self, answer: RowAnswer) -> None:
        """It is whole."""

    def failed(self, error: Exception) -> None:
        """There will be none."""

    def began(self) -> None:
        """The model begins with it."""


@dataclass(eq=False)
class WaitingRow:
    """One answer that is asked for.

    Attributes:
        sample: prompt as the family encodes it.
        settings: how it is answered.
        compression: its budget, as the model's `checked` gives it.
        length: tokens of the prompt in the language model.
        sink: where it goes.
        has_left: set when nobody wants it any more.
        is_streamed: whether its text is sent as it comes.
        is_shown: whether some has been sent, so that it cannot be begun anew.
        is_over: whether it has an answer or failed.
    """

    sample: Sample
    settings: RowSettings
    compression: CompressionConfig
    length: int
    sink: AnswerSink
    has_left: threading.Event
    is_streamed: bool = False
    is_shown: bool = False
    is_over: bool = False

    @property
    def tokens(self) -> int:
        """Most tokens of prompt and answer."""
        return self.length + self.settings.max_new_tokens

    def fail(self, error: Exception) -> None:
        """Say that there is no answer, unless there is one."""
        if not self.is_over:
            self.is_over = True
            self.sink.failed(error)


class WaitingRows:
    """A queue between the threads of requests and that of the model.

    Args:
        limits: size of a batch.
        coming: how many requests are being read and prepared, which will join soon.
        gather: seconds that a batch which is not full waits for these.
    """

    def __init__(self, limits: ServingLimits, coming: Callable[[], int] = lambda: 0, gather: float = 0.05) -> None:
        self._limits = limits
        self._coming = coming
        self._gather = gather
        self._rows: deque[WaitingRow] = deque()
        self._changed = threading.Condition()
        self._closed: Exception | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: list[WaitingRow]) -> None:
        """Let rows wait; where the queue is closed they fail at once."""
        with self._changed:
            closed = self._closed
            if closed is None:
                self._rows.extend(rows)
                self._changed.notify()
        if closed is not None:
            for row in rows:
                row.fail(closed)

    def forget_left(self) -> None:
        """Let go of rows that nobody wants any more, with their images."""
        with self._changed:
            kept = [row for row in self._rows if not row.has_left.is_set()]
            self._rows.clear()
            self._rows.extend(kept)

    def close(self, reason: Exception) -> None:
        """Let all that wait, and all that come, fail with a reason."""
        with self._changed:
            self._closed = reason
            left = list(self._rows)
            self._rows.clear()
            self._changed.notify_all()
        for row in left:
            row.fail(reason)

    def take(self) -> list[WaitingRow] | None:
        """The rows of the next batch, at least one; waits for them. None once the queue is closed.

        The oldest row decides about the budget. Rows of the same budget join it in their order while they fit; rows of
        others keep their place.
        """
        with self._changed:
            while not self._rows and self._closed is None:
                self._changed.wait()
            end = time.monotonic() + self._gather
            while self._closed is None and len(self._rows) < self._limits.batch_size and self._coming():
                if (left := end - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return None if self._closed is not None else self._batch()

    def _batch(self) -> list[WaitingRow]:
        batch: list[WaitingRow] = []
        passed: list[WaitingRow] = []
        while self._rows and len(batch) < self._limits.batch_size:
            row = self._rows.popleft()
            (batch if self._joins(row, batch) else passed).append(row)
        self._rows.extendleft(reversed(passed))
        return batch

    def _joins(self, row: WaitingRow, batch: list[WaitingRow]) -> bool:
        if not batch:
            return True
        longest = max(one.tokens for one in (*batch, row))
        fits = longest * (len(batch) + 1) <= self._limits.batch_tokens
        return fits and row.compression == batch[0].compression
