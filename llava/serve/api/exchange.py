"""One request while it is answered: what the model's thread says about its rows reaches the server's loop here."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass

from llava.inference.row_batches import RowAnswer
from llava.model.finite import NonFiniteLogitsError
from llava.serve.api.failures import FAILED, ApiError, overtime, refused
from llava.serve.api.request_reader import PreparedRequest
from llava.serve.measures import Measures
from llava.serve.model_thread import ModelDiedError, lacks_memory
from llava.serve.waiting_rows import WaitingRow


@dataclass(frozen=True)
class RowEvent:
    """Something that came of an answer.

    Attributes:
        index: number of the answer in its request.
        piece: more of its text.
        answer: the whole, at its end.
        error: why there is none.
    """

    index: int
    piece: str = ""
    answer: RowAnswer | None = None
    error: Exception | None = None


class Exchange:
    """A request and its answers.

    Args:
        prepared: the request.
        ends: time at which it must be answered, by the loop's clock.
        measures: what is counted.
        seconds: how long it may take, for the error.

    Attributes:
        has_left: set when nobody waits for it any more.
        has_failed: whether an answer cannot be given.
    """

    def __init__(self, prepared: PreparedRequest, ends: float, measures: Measures, seconds: float) -> None:
        self.prepared = prepared
        self.has_left = threading.Event()
        self.has_failed = False
        self._ends = ends
        self._seconds = seconds
        self._measures = measures
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[RowEvent] = asyncio.Queue()
        self.answers: dict[int, RowAnswer] = {}

    def rows(self) -> list[WaitingRow]:
        """Its answers, for the queue."""
        prepared = self.prepared
        return [
            WaitingRow(
                prepared.sample,
                settings,
                prepared.compression,
                prepared.length,
                _Sink(self, index, self._measures),
                self.has_left,
                prepared.request.stream,
            )
            for index, settings in enumerate(prepared.rows)
        ]

    def put(self, event: RowEvent) -> None:
        """Hand an event to the loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def fail(self, error: ApiError) -> None:
        """End it with an error, from the loop."""
        self._events.put_nowait(RowEvent(0, error=error))
        self.has_left.set()

    @property
    def is_over(self) -> bool:
        """Whether all answers are whole."""
        return len(self.answers) == len(self.prepared.rows)

    async def next(self) -> RowEvent:
        """What comes next.

        Raises:
            ApiError: if an answer cannot be given, or not in time.
        """
        try:
            async with asyncio.timeout_at(self._ends):
                event = await self._events.get()
        except TimeoutError:
            self.has_failed = True
            raise overtime(self._seconds) from None
        if event.error is not None:
            self.has_failed = True
            raise as_api_error(event.error)
        if event.answer is not None:
            self.answers[event.index] = event.answer
        return event

    async def all(self) -> list[RowAnswer]:
        """All answers, in order.

        Raises:
            ApiError: as `next`.
        """
        while not self.is_over:
            await self.next()
        return self.ordered

    @property
    def ordered(self) -> list[RowAnswer]:
        """The answers that are whole, in the order of their numbers."""
        return [self.answers[index] for index in sorted(self.answers)]


class _Sink:
    """Where one answer goes."""

    def __init__(self, exchange: Exchange, index: int, measures: Measures) -> None:
        self._exchange = exchange
        self._index = index
        self._measures = measures
        self._since = time.monotonic()

    def began(self) -> None:
        self._measures.queued.observe(time.monotonic() - self._since)

    def shown(self, piece: str) -> None:
        self._exchange.put(RowEvent(self._index, piece))

    def answered(self, answer: RowAnswer) -> None:
        self._measures.answer(answer)
        if self._index == 0:
            self._measures.prompt(answer)
        self._exchange.put(RowEvent(self._index, answer=answer))

    def failed(self, error: Exception) -> None:
        self._exchange.put(RowEvent(self._index, error=error))


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about an error of the model or of its thread."""
    match error:
        case ApiError():
            return error
        case ModelDiedError():
            return ApiError(503, str(error), FAILED, None, "model_died")
        case NonFiniteLogitsError():
            return ApiError(500, str(error), FAILED, None, "not_finite")
        case _ if lacks_memory(error):
            message = "The request takes more memory than there is; send fewer or smaller images, or ask for less."
            return ApiError(503, message, FAILED, None, "out_of_memory")
        case ValueError():
            return refused(str(error))
        case _:
            kind = type(error).__name__
            return ApiError(500, f"The model failed on this request ({kind}); the server's log says more.", FAILED)
