"""A process pool that returns results in order and loses one item, not the run, when a process dies."""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from llava.common.child_processes import ctrl_c_left_to_parent, end_with

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNKS_IN_FLIGHT = 4  # for each worker: enough that none waits, few enough that memory stays small
MOST_DEATHS = 20
_SPAWN = multiprocessing.get_context("spawn")


def chunks_of(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Consecutive lists of `size` items, the last one shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


@dataclass
class WorkerPool(Generic[Item, Result]):
    """Processes that work through chunks of items.

    Processes are spawned, so nothing is inherited, threads of this process included.

    Attributes:
        work: turns a list of items into as many results; must be importable by the processes.
        died: the result of an item that killed its process; told whether it was tried at all, because after
            MOST_DEATHS deaths no item under suspicion is tried any more.
        workers: processes; 0 works in this one, where nothing guards against a death.
    """

    work: Callable[[list[Item]], list[Result]]
    died: Callable[[Item, bool], Result]
    workers: int
    deaths: int = 0
    _pool: ProcessPoolExecutor | None = field(default=None, init=False)
    _lone: ProcessPoolExecutor | None = field(default=None, init=False)
    _leash: tuple[Connection, Connection] | None = field(default=None, init=False)

    def run(self, chunks: Iterable[list[Item]]) -> Iterator[list[Result]]:
        """The results of every chunk, in the order of the chunks.

        Raises:
            RuntimeError: if the processes cannot even start.
        """
        if self.workers == 0:
            yield from map(self.work, chunks)
            return
        rest = iter(chunks)
        self._leash = _SPAWN.Pipe(duplex=False)
        waiting: deque[tuple[list[Item], Future[list[Result]] | None]] = deque()
        try:
            self._pool = self._start(self.workers)
            while True:
                for chunk in islice(rest, CHUNKS_IN_FLIGHT * self.workers - len(waiting)):
                    waiting.append((chunk, self._submit(chunk)))
                if not waiting:
                    return
                yield self._finish(*waiting.popleft())
        finally:
            self._end()

    def _end(self) -> None:
        """Kill the processes at once: all work is done, or its results are no longer wanted."""
        for end in self._leash or ():
            end.close()
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, chunk: list[Item]) -> Future[list[Result]] | None:
        """Hand out a chunk, to new processes if one of the old ones has died; None if they cannot be started."""
        try:
            if self._pool is not None:
                return self._handed(self._pool, chunk)
        except BrokenProcessPool:
            self._pool = None
        try:
            self._pool = self._start(self.workers)
            return self._handed(self._pool, chunk)
        except (RuntimeError, OSError):  # a broken pool is a RuntimeError
            return None

    def _handed(self, pool: ProcessPoolExecutor, chunk: list[Item]) -> Future[list[Result]]:
        """A chunk handed out, which starts a process if none is idle and there may be more."""
        with ctrl_c_left_to_parent():
            return pool.submit(self.work, chunk)

    def _finish(self, chunk: list[Item], future: Future[list[Result]] | None) -> list[Result]:
        """The results of a chunk; if it failed, its items are tried one by one.

        When a process dies, every chunk in flight fails, and which item was to blame is unknown.
        """
        try:
            if future is not None:
                return future.result()
        except Exception as error:
            logger.warning("A worker process failed; its %d items are tried one by one. %s", len(chunk), error)
        return [self._alone(item) for item in chunk]

    def _alone(self, item: Item) -> Result:
        """Work on one item in a process of its own, so that the item is known to be the cause if the process dies."""
        if self.deaths >= MOST_DEATHS:
            return self.died(item, False)
        try:
            self._lone = self._lone or self._start(1)
            return self._handed(self._lone, [item]).result()[0]
        except Exception as error:
            logger.warning("An item ended the process that worked on it: %s", error)
        self.deaths += 1
        self._lone = None
        return self.died(item, True)

    def _start(self, workers: int) -> ProcessPoolExecutor:
        assert self._leash is not None
        pool = ProcessPoolExecutor(workers, mp_context=_SPAWN, initializer=end_with, initargs=(self._leash[0],))
        try:
            self._handed(pool, []).result()
        except BrokenProcessPool as error:
            raise RuntimeError("The worker processes end as soon as they start; try --workers 0.") from error
        return pool
