"""Worker processes that end when their parent ends them, and when their parent is gone."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the processes that check data do without torch
    from torch.utils.data import DataLoader

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_LOOK_EVERY = 1.0  # seconds


def leave_signals_to_parent(loader: DataLoader) -> DataLoader:
    """Let the workers of a loader obey SIGTERM and SIGUSR1 from their parent alone; returns the same loader.

    A cluster sends these to every process of a job. A worker that died of them would take the batch with it that the
    run needs before it can save, and one that ignored them would outlive the run: multiprocessing ends a worker with
    SIGTERM and then waits for it, for ever.

    Args:
        loader: that was not iterated over yet; with or without workers.
    """
    loader.worker_init_fn = functools.partial(_start, loader.worker_init_fn)
    return loader


def end_with(leash: Connection | int) -> None:
    """Let this process end when the other end of a pipe is closed, in the middle of its work.

    The parent holds that end alone, so the system closes it however the parent dies. Without this the processes of a
    pool wait for work for ever when their parent was killed. Ctrl-C is left to the parent.

    Args:
        leash: that nothing is ever sent through, such as the `sentinel` of the parent of a spawned process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_outlive, args=(leash,), daemon=True).start()


def end_with_parent(parent: int | None = None) -> None:
    """Let this process end within seconds of the one that started it, also where it waits for a queue for ever.

    Args:
        parent: number of the process that started it, from before it did: it may be gone by now. None for the one that
            multiprocessing knows.
    """
    watched = os.getppid(), _parent() if parent is None else parent
    threading.Thread(target=_end_without, args=watched, daemon=True).start()


@contextmanager
def ctrl_c_left_to_parent() -> Iterator[None]:
    """Let processes that are spawned here not hear Ctrl-C, from their first moment on; the parent hears it afterwards.

    While Python loads their modules they would end in a traceback of their own.
    """
    resource_tracker.ensure_running()  # its start would let the signal through again
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@contextmanager
def forks_end_with_parent() -> Iterator[None]:
    """Let processes that are forked here end within seconds when this one was killed, whoever forks them.

    For libraries that start pools and managers of their own: those wait for work for ever when nobody is left. Ctrl-C
    is left to the parent.
    """
    is_open, parent = True, os.getpid()

    def note() -> None:
        nonlocal parent
        parent = os.getpid()

    def watch() -> None:
        if is_open:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            end_with_parent(parent)

    os.register_at_fork(before=note, after_in_child=watch)  # cannot be taken back, so it looks whether it is open
    try:
        yield
    finally:
        is_open = False


def _end_without(above: int, parent: int) -> None:
    """End with the parent, or with the process above, which is another under forkserver."""
    while os.getppid() == above and is_running(parent):
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def is_running(process: int) -> bool:
    """Whether this machine has a process of this number; where that cannot be told, it counts as there."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _outlive(leash: Connection | int) -> None:
    wait([leash])
    os._exit(1)


def _start(before: Callable[[int], Any] | None, worker: int) -> None:
    """Initialiser of a data-loading worker."""
    _obey_parent_alone()
    end_with_parent()
    if before is not None:
        before(worker)


def _obey_parent_alone() -> None:
    """Take the signals up in a thread, where it can be told who sent them; every later thread inherits the mask.

    Where the system cannot wait for signals (macOS), torch's own handler stays, which ends a worker of all of them.
    """
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_when_parent_says, args=(_parent(),), daemon=True).start()


def _parent() -> int:
    """Who started this process and ends it; under forkserver that is not the process it was forked from."""
    parent = multiprocessing.parent_process()
    return os.getppid() if parent is None or parent.pid is None else parent.pid


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)
