"""Chat completions: a place for each request, its body read within bounds, its prompt prepared, its answers sent."""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llava.common.shown import shown_bytes
from llava.inference.engine import Engine
from llava.serve.api.access_keys import AccessKeys
from llava.serve.api.completion_fields import AskingDefaults
from llava.serve.api.exchange import Exchange, RowEvent
from llava.serve.api.failures import FAILED, OVERLOADED, ApiError, ending, overtime
from llava.serve.api.replies import ReplyForm, event, finish_reason
from llava.serve.api.request_reader import PreparedRequest, RequestReader
from llava.serve.limits import ServingLimits
from llava.serve.measures import Measures
from llava.serve.model_thread import ModelThread
from llava.serve.waiting_rows import WaitingRows

_LEFT = 499
"""Status of a request whose client left, as web servers log it; nobody reads it."""
_PREPARERS = 2
_DRAIN_SECONDS = 5.0
_LONGEST_RETRY = 60
_LAST_WRITE_SECONDS = 10.0
Result = TypeVar("Result")


class _ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


class ChatService:
    """Answers chat completions with one model; lives in one event loop.

    Args:
        engine: the model.
        defaults: what holds where a request says nothing.
        keys: who may ask.
        limits: bounds.
        fetches: whether http(s) addresses of images are fetched.

    Attributes:
        is_ending: whether new requests are refused.
    """

    def __init__(
        self,
        engine: Engine,
        defaults: AskingDefaults,
        keys: AccessKeys | None = None,
        limits: ServingLimits | None = None,
        fetches: bool = False,
    ) -> None:
        self.limits = limits = limits or ServingLimits()
        self.defaults = defaults
        self.engine = engine
        self.keys = keys or AccessKeys()
        self.is_ending = False
        self._reader = RequestReader(engine, defaults, limits, fetches)
        self._coming = 0  # requests that are being read and prepared
        self._rows = WaitingRows(limits, lambda: self._coming)
        self.measures = Measures(lambda: len(self._rows), lambda: len(self.model.answering), lambda: not self.fault)
        self.model = ModelThread(engine, self._rows, self.measures.batch.observe, self._note_pace)
        self._pool = ThreadPoolExecutor(_PREPARERS, "prepare")
        self._places = limits.batch_size + limits.waiting
        self._taken = 0
        self._held = 0
        self._exchanges: set[Exchange] = set()
        self._pace = 1.0  # seconds that a batch takes, lately

    def start(self) -> None:
        """Begin to answer."""
        self.model.start()

    @property
    def taken(self) -> int:
        """Places that are taken: answers that are under way in any form."""
        return self._taken

    @property
    def fault(self) -> str | None:
        """Why nothing can be answered, as a sentence; None where it can."""
        if self.model.died:
            return self.model.died
        stalled = self.model.stalled()
        if stalled > self.limits.seconds:
            return f"The model has given no token for {stalled:.0f} seconds; the server has to be started again."
        return None

    def give_up(self) -> None:
        """Let everything that is under way fail, for the server ends."""
        self._rows.close(ending())
        for exchange in self._exchanges:
            exchange.fail(ending())

    def close(self) -> None:
        """Let no thread go on."""
        self.is_ending = True
        self._rows.close(ending())
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def complete(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            ApiError: if there is no answer.
        """
        began = time.monotonic()
        ends = asyncio.get_running_loop().time() + self.limits.seconds
        with contextlib.ExitStack() as held:
            try:
                self.keys.check(request.headers.get("authorization"))
                self._check_open(request)
                held.enter_context(self._place(1))
                body = held.enter_context(contextlib.closing(_Body(self)))
                await self._receive(request, body)
            except ApiError:
                await _drain(request, self.limits.body_bytes)
                raise
            except ClientDisconnect:
                return self._client_left()
            try:
                with self._expected():
                    prepared = await self._unless_left(request, self._prepare(body, ends))
                body.close()
                held.enter_context(self._place(len(prepared.rows) - 1))
                exchange = held.enter_context(self._begun(prepared, ends))
                reply = ReplyForm(f"chatcmpl-{secrets.token_hex(12)}", self.defaults.model, int(time.time()))
                if not prepared.request.stream:
                    answers = await self._unless_left(request, exchange.all())
                    return JSONResponse(reply.whole(answers))
                first = await self._unless_left(request, exchange.next())
            except _ClientLeftError:
                return self._client_left()
            self.measures.first_piece.observe(time.monotonic() - began)
            held.callback(self._note_end, exchange)
            return _EventStream(self._pieces(exchange, reply, first), held.pop_all(), ends + _LAST_WRITE_SECONDS)

    def _check_open(self, request: Request) -> None:
        if self.is_ending:
            raise ending()
        if self.fault:
            raise ApiError(503, self.fault, FAILED, None, "model_died")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"The body is of the type {kind[:100]!r}; send JSON as Content-Type: application/json.")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "The body is compressed; send it as it is, without Content-Encoding.")

    @contextlib.contextmanager
    def _place(self, count: int) -> Iterator[None]:
        """Keep places for answers.

        Raises:
            ApiError: if there are no more.
        """
        if self._taken + count > self._places:
            raise self._full(f"{self._taken} answers are under way, and there is room for {self._places}")
        self._taken += count
        try:
            yield
        finally:
            self._taken -= count

    @contextlib.contextmanager
    def _expected(self) -> Iterator[None]:
        """Count a request among those that a batch waits for a moment."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    def _full(self, reason: str) -> ApiError:
        batches = math.ceil(max(self._taken, 1) / self.limits.batch_size)
        seconds = min(max(math.ceil(batches * self._pace), 1), _LONGEST_RETRY)
        message = f"The server is busy: {reason}. Ask again in {seconds} seconds."
        return ApiError(429, message, OVERLOADED, None, "queue_full", seconds)

    async def _receive(self, request: Request, body: _Body) -> None:
        """Read the body within the bounds of size, memory and time."""
        most = self.limits.body_bytes
        too_large = ApiError(
            413, f"The request has more than the {shown_bytes(most)} that are accepted; send smaller images."
        )
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for piece in request.stream():
                    if len(body.content) + len(piece) > most:
                        raise too_large
                    if self._held + len(piece) > self.limits.held_bytes:
                        raise self._full(f"requests of {shown_bytes(self._held)} are being read")
                    body.add(piece)
        except TimeoutError:
            message = f"The request did not arrive within {self.limits.upload_seconds:g} seconds; send less at once."
            raise ApiError(408, message, code="timeout") from None

    async def _prepare(self, body: _Body, ends: float) -> PreparedRequest:
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(ends):
                return await loop.run_in_executor(self._pool, self._reader.read, bytes(body.content), gone.is_set)
        except TimeoutError:
            raise overtime(self.limits.seconds) from None
        finally:
            gone.set()

    @contextlib.contextmanager
    def _begun(self, prepared: PreparedRequest, ends: float) -> Iterator[Exchange]:
        """Let a request wait for the model; what is left of it ends with the context."""
        exchange = Exchange(prepared, ends, self.measures, self.limits.seconds)
        self._exchanges.add(exchange)
        try:
            self._rows.put(exchange.rows())
            yield exchange
        finally:
            exchange.has_left.set()
            self._exchanges.discard(exchange)
            if not exchange.is_over:
                self._rows.forget_left()

    async def _unless_left(self, request: Request, work: Awaitable[Result]) -> Result:
        """Wait for something as long as the client does.

        Raises:
            _ClientLeftError: if it left.
        """
        working = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_until_left(request))
        try:
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _ClientLeftError
            return working.result()
        finally:
            for task in (working, leaving):
                task.cancel()

    def _client_left(self) -> Response:
        self.measures.left.inc()
        return Response(status_code=_LEFT)

    def _note_end(self, exchange: Exchange) -> None:
        """A stream has ended."""
        if not (exchange.is_over or exchange.has_failed):
            self.measures.left.inc()

    async def _pieces(self, exchange: Exchange, reply: ReplyForm, first: RowEvent) -> AsyncIterator[str]:
        """The events of a stream."""
        request = exchange.prepared.request
        unsaid: dict[str, Any] = {"usage": None} if request.include_usage else {}
        for index in range(len(exchange.prepared.rows)):
            yield event(reply.piece(index, {"role": "assistant", "content": ""}) | unsaid)
        came: RowEvent | None = first
        try:
            while came is not None:
                if came.piece:
                    yield event(reply.piece(came.index, {"content": came.piece}) | unsaid)
                if came.answer is not None:
                    yield event(reply.piece(came.index, {}, finish_reason(came.answer)) | unsaid)
                came = None if exchange.is_over else await exchange.next()
        except ApiError as error:
            yield event(error.body())
            return
        if request.include_usage:
            yield event(reply.last(exchange.ordered))
        yield event("[DONE]")

    def _note_pace(self, seconds: float) -> None:
        """A batch was answered; called in the model's thread."""
        self._pace = 0.7 * self._pace + 0.3 * seconds


class _Body:
    """The body of a request while it is read; its bytes count among those that the server holds until it is closed."""

    def __init__(self, service: ChatService) -> None:
        self._service = service
        self.content = bytearray()

    def add(self, piece: bytes) -> None:
        self.content += piece
        self._service._held += len(piece)

    def close(self) -> None:
        self._service._held -= len(self.content)
        self.content.clear()


class _EventStream(StreamingResponse):
    """Server-sent events; however the stream ends, what was held for it is let go."""

    def __init__(self, pieces: AsyncIterator[str], held: contextlib.ExitStack, ends: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(pieces, media_type="text/event-stream", headers=headers)
        self._left = held
        self._ends = ends

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; a client that does not read is left after its time."""
        with self._left, contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._ends):
                await super().__call__(scope, receive, send)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def _drain(request: Request, most: int) -> None:
    """Read what is left of a body that is refused: a client that is still sending would not read why."""
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            size = 0
            async for piece in request.stream():
                size += len(piece)
                if size > most:
                    return
