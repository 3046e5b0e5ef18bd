"""The thread in which a model answers what waits, batch after batch, until it is closed or the model fails for good."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import torch

from llava.common.image_limits import is_lack_of_memory
from llava.inference.engine import Engine
from llava.inference.row_batches import RowAnswer, answer_rows
from llava.model.finite import NOT_FINITE, NonFiniteLogitsError
from llava.serve.waiting_rows import WaitingRow, WaitingRows

logger = logging.getLogger(__name__)


class ModelDiedError(RuntimeError):
    """The thread of the model has ended, so that nothing is answered any more."""


class ModelThread:
    """Answers the rows of a queue.

    A batch that fails is tried again row by row, so that a question at fault, or a batch too large for the memory,
    costs no other its answer. An error after which the device cannot be used, and one outside of any batch, end the
    thread: all that wait fail, and so does all that comes.

    Args:
        engine: the model.
        rows: what waits.
        began: called with the number of rows of each batch before it is answered.
        ended: called with the seconds that it took.
    """

    def __init__(
        self,
        engine: Engine,
        rows: WaitingRows,
        began: Callable[[int], None] = lambda rows: None,
        ended: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._engine = engine
        self._rows = rows
        self._began = began
        self._ended = ended
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._stepped = time.monotonic()
        self.answering: list[WaitingRow] = []
        self.died: str | None = None

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self, seconds: float) -> bool:
        """Wait for the end, once the queue is closed; whether it has come."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def stalled(self) -> float:
        """Seconds since the model gave its last token, while it answers something; else 0."""
        return time.monotonic() - self._stepped if self.answering else 0.0

    def _run(self) -> None:
        try:
            while (batch := self._rows.take()) is not None:
                began = self._stepped = time.monotonic()
                self.answering = batch
                wanted = [row for row in batch if not row.has_left.is_set()]
                if wanted:
                    self._began(len(wanted))
                    self._answer(wanted)
                    self._ended(time.monotonic() - began)
                self.answering = []
                del batch, wanted  # their images are not kept while nothing is asked
        except BaseException as error:  # of any kind: all waiting requests are told
            self._die(error)

    def _die(self, error: BaseException) -> None:
        logger.critical("The model's thread ends: nothing can be answered any more.", exc_info=error)
        self.died = f"The model has failed for good ({type(error).__name__}); the server has to be started again."
        reason = ModelDiedError(self.died)
        for row in self.answering:
            row.fail(reason)
        self.answering = []
        self._rows.close(reason)

    def _answer(self, batch: list[WaitingRow]) -> None:
        for row in batch:
            row.sink.began()
        failure = self._failure(batch)
        if failure is None:
            return
        if len(batch) > 1:
            for row in batch:
                if not (row.is_over or row.is_shown):
                    alone = self._failure([row])
                    if alone is not None:
                        row.fail(alone)
        for row in batch:
            row.fail(failure)

    def _failure(self, batch: list[WaitingRow]) -> Exception | None:
        """Answer rows together; what went wrong, if anything did, without the frames that hold the memory of it.

        Raises:
            Exception: after which the model is beyond use.
        """
        try:
            self._together(batch)
        except Exception as error:
            if is_beyond_use(error):
                raise
            level = logging.WARNING if isinstance(error, ValueError) or lacks_memory(error) else logging.ERROR
            logger.log(level, "A batch of %d failed.", len(batch), exc_info=error)
            return error.with_traceback(None)
        return None

    def _together(self, batch: list[WaitingRow]) -> None:
        listener = _SinkListener(batch, self._step)
        samples = [row.sample for row in batch]
        broken = answer_rows(self._engine, samples, [row.settings for row in batch], batch[0].compression, listener)
        for number in broken:
            batch[number].fail(NonFiniteLogitsError(NOT_FINITE))
        for row in batch:
            row.fail(RuntimeError("the model ended before the answer did"))

    def _step(self) -> None:
        self._stepped = time.monotonic()


class _SinkListener:
    """Hands what comes of a batch to the sinks of its rows."""

    def __init__(self, batch: list[WaitingRow], step: Callable[[], None]) -> None:
        self._batch = batch
        self.stepped = step

    def left(self, row: int) -> bool:
        return self._batch[row].has_left.is_set()

    def shown(self, row: int, piece: str) -> None:
        if self._batch[row].is_streamed:
            self._batch[row].is_shown = True
            self._batch[row].sink.shown(piece)

    def answered(self, row: int, answer: RowAnswer) -> None:
        self._batch[row].is_over = True
        self._batch[row].sink.answered(answer)


def lacks_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of the device did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or is_lack_of_memory(error)


def is_beyond_use(error: Exception) -> bool:
    """Whether a device cannot be used any more in this process, as after an assertion that failed in a kernel."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)
