"""Worker processes that answer, one a device; tasks are handed out as devices become free.

The process that was started deals tasks out over a pipe to each worker. No lock or queue is shared, so that the death
of any process, at any moment, leaves nothing that another one waits for: a worker ends with the process that dealt out,
and a dead worker is noticed. Each worker has written its answers to its own part of the answer file before it reports
them.
"""

from __future__ import annotations

import enum
import logging
import multiprocessing
import os
import signal
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch

from llava.common.child_processes import ctrl_c_left_to_parent, end_with
from llava.common.image_limits import is_lack_of_memory
from llava.cost.machine import device_name
from llava.eval.benchmarks.answer_lines import answer_line
from llava.eval.benchmarks.questions import Question
from llava.eval.runner.answer_file import AnswerFile
from llava.eval.runner.exit_status import WorkerError, first_line
from llava.inference.batches import Task
from llava.inference.engine import Engine, ModelSpec, Outcome
from llava.inference.generation import GenerationSettings

logger = logging.getLogger(__name__)
_PATIENCE = 5.0
"""Seconds that workers have to end by themselves before they are terminated."""


@dataclass(frozen=True)
class Assignment:
    """What a worker needs of a benchmark before its tasks: files, generation settings and names.

    Attributes:
        answers: where answers go.
        generation: how answers are generated.
        model_id: name of the model in answer lines.
        with_metadata: whether lines say, under `metadata`, what an answer took; LLaVA's own are empty there.
        loader_workers: processes that read images ahead, for each worker.
    """

    answers: AnswerFile
    generation: GenerationSettings
    model_id: str
    with_metadata: bool = True
    loader_workers: int = 0


class WorkerMessage(enum.Enum):
    """Messages of a worker besides the name of its device, its outcomes, and the error that ends it."""

    NEXT = "the next task"
    DONE = "nothing: it has done all it was dealt"


class DeviceWorkers(ABC):
    """The processes that answer: this one, or one for each of several devices.

    Attributes:
        size: how many processes answer.
        devices: names of their devices, in words; empty before the first answer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.devices: list[str] = []

    @abstractmethod
    def answer(self, assignment: Assignment, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """Answer all tasks; what an outcome tells of stands in the answer file already.

        Raises:
            ValueError: if the model cannot be opened, or the assignment does not fit it.
            WorkerError: if a worker died.
        """

    @abstractmethod
    def close(self, patience: float = _PATIENCE) -> None:
        """End the workers, which have so many seconds to end by themselves."""

    def __enter__(self) -> DeviceWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ThisProcess(DeviceWorkers):
    """One device, in this process; the model is loaded when there is something to answer."""

    def __init__(self, spec: ModelSpec, device: str) -> None:
        super().__init__(size=1)
        self._spec = spec
        self._device = device
        self._engine: Engine | None = None

    def answer(self, assignment: Assignment, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See `DeviceWorkers`."""
        if self._engine is None:
            self._engine = load(self._spec, self._device)
            self.devices = [device_name(self._engine.device)]
        try:
            yield from run_assignment(self._engine, assignment, tasks, rank=0, workers=1)
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error):
                raise
            raise WorkerError(_reason(error)) from error

    def close(self, patience: float = _PATIENCE) -> None:
        """See `DeviceWorkers`."""
        self._engine, self.devices = None, []


class WorkerProcesses(DeviceWorkers):
    """A process for each device."""

    def __init__(self, spec: ModelSpec, devices: Sequence[str]) -> None:
        super().__init__(len(devices))
        self._names = [f"process {rank} on {device}" for rank, device in enumerate(devices)]
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        for rank, device in enumerate(devices):
            ours, theirs = context.Pipe()
            work = (theirs, spec, device, rank, len(devices))
            process = context.Process(target=_work, args=work, name=self._names[rank])
            with ctrl_c_left_to_parent():
                process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def answer(self, assignment: Assignment, tasks: Iterator[Task]) -> Iterator[Outcome]:
        """See `DeviceWorkers`."""
        busy = list(self._connections)
        for connection in busy:
            self._send(connection, assignment)
        while busy:
            self._check_alive()
            for connection in cast(list[Connection], wait(busy, timeout=1.0)):
                message = self._receive(connection)
                if message is WorkerMessage.NEXT:
                    self._send(connection, next(tasks, None))
                elif message is WorkerMessage.DONE:
                    busy.remove(connection)
                elif isinstance(message, str):
                    self.devices.append(message)
                elif isinstance(message, WorkerError):
                    raise WorkerError(
                        f"Evaluation {self._names[self._connections.index(connection)]} failed: {message}"
                    )
                elif isinstance(message, ValueError):
                    raise message
                else:
                    yield message

    def close(self, patience: float = _PATIENCE) -> None:
        """See `DeviceWorkers`."""
        for connection in self._connections:
            connection.close()
        deadline = time.monotonic() + patience  # for all of them together
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()
                process.join()

    def _send(self, connection: Connection, message: Any) -> None:
        try:
            connection.send(message)
        except OSError as error:
            raise self._death(connection) from error

    def _receive(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, OSError) as error:
            raise self._death(connection) from error

    def _check_alive(self) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            if not process.is_alive() and not connection.poll():
                raise self._death(connection)

    def _death(self, connection: Connection) -> WorkerError:
        rank = self._connections.index(connection)
        self._processes[rank].join(_PATIENCE)
        status = self._processes[rank].exitcode
        how = f"was killed by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        cause = " (the system does that where memory runs out)" if status == -signal.SIGKILL else ""
        return WorkerError(f"Evaluation {self._names[rank]} {how}{cause}.")


def load(spec: ModelSpec, device: str) -> Engine:
    """Load a model.

    Raises:
        ValueError: as in `Engine.open`.
        WorkerError: if the device has too little memory for it.
    """
    try:
        return Engine.open(spec, device, {"": device})
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        smaller = "" if spec.bits == 4 else "give --load-4bit, or "
        raise WorkerError(
            f"{device} has too little memory for the model; {smaller}use a GPU with more memory. ({first_line(error)})"
        ) from error


def run_assignment(
    engine: Engine, assignment: Assignment, tasks: Iterable[Task], rank: int, workers: int
) -> Iterator[Outcome]:
    """Answer tasks, and write each answer to the disk before its outcome is yielded.

    Args:
        engine: the model.
        assignment: where answers go, and how to ask.
        tasks: tasks to do.
        rank: number of this process.
        workers: how many processes work at once.
    """
    for outcome in engine.answer_tasks(tasks, assignment.generation, assignment.loader_workers):
        seconds = outcome.seconds / len(outcome.task.numbers) / workers
        lines = []
        for row, text in outcome.texts.items():
            question = cast(Question, outcome.task.prompts[row])
            line = answer_line(question, text, uuid.uuid4().hex, assignment.model_id)
            if assignment.with_metadata:
                line["metadata"] = {"visual_tokens": outcome.visual_tokens.get(row), "seconds": round(seconds, 6)}
            lines.append(line)
        if lines:
            assignment.answers.append(rank, lines)
        yield outcome


def _work(connection: Connection, spec: ModelSpec, device: str, rank: int, workers: int) -> None:
    """Run a worker process: load the model, then answer what is dealt out until the connection closes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        end_with(parent.sentinel)  # without the process that deals out nobody wants the answers any more
    try:
        if device == "cpu":
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        engine = load(spec, device)
        connection.send(device_name(engine.device))
        while (assignment := connection.recv()) is not None:
            for outcome in run_assignment(engine, assignment, _dealt(connection), rank, workers):
                connection.send(outcome)
            connection.send(WorkerMessage.DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the process that deals out is gone
    except Exception as error:
        if not (isinstance(error, ValueError | WorkerError) or is_lack_of_memory(error)):
            logger.exception("Evaluation process %d failed.", rank)
        kind = ValueError if isinstance(error, ValueError) else WorkerError
        connection.send(kind(_reason(error)))


def _dealt(connection: Connection) -> Iterator[Task]:
    """Ask for tasks over the connection, one by one, until there are none left."""
    while True:
        connection.send(WorkerMessage.NEXT)
        task = connection.recv()
        if task is None:
            return
        yield task


def _reason(error: Exception) -> str:
    if is_lack_of_memory(error):
        return f"The device has too little memory for this batch; give a smaller --batch-size. ({first_line(error)})"
    return str(error) if isinstance(error, ValueError | WorkerError) else f"{type(error).__name__}: {error}"
