"""Programs run in forked processes: the libraries are imported once, and every run can be killed like a real one."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

PATIENCE = 300.0  # seconds after which a run counts as hanging
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: exit status, or the negative number of the signal that ended it.
        seconds: from its start.
        said: what it wrote to stdout and stderr.
    """

    status: int
    seconds: float
    said: str

    @property
    def traceback(self) -> bool:
        """Whether it ended in a traceback instead of a sentence."""
        return TRACEBACK in self.said

    @property
    def last_line(self) -> str:
        """What a user reads last."""
        return self.said.strip().rsplit("\n", 1)[-1]


class Running:
    """A program in a forked process that leads a process group of its own."""

    def __init__(self, program: Callable[[], object], log: Path, prepare: Callable[[], None] | None = None) -> None:
        """Start it.

        Args:
            program: called in the child; the value it returns is the exit status if it is a number, else 0.
            log: file that takes stdout and stderr.
            prepare: called in the child before, for limits.
        """
        self.log, self.began = log, time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _child(program, log, prepare, theirs)
        os.close(theirs)
        os.read(ours, 1)  # until the program begins: no signal meets what comes before it
        os.close(ours)
        self.status: int | None = None

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(raw)
        return self.status

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        """Send a signal to the process, or to all that it started as well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def wait(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end.

        Raises:
            TimeoutError: if it does not end; it is killed first.
        """
        deadline = time.monotonic() + patience
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                said = self.log.read_text(encoding="utf-8", errors="replace")
                raise TimeoutError(f"A program did not end in {patience:.0f} s; it said:\n{said[-8000:]}")
            time.sleep(0.01)
        self.kill()  # what it left behind
        return Ended(status, time.monotonic() - self.began, self.log.read_text(encoding="utf-8", errors="replace"))


def run(program: Callable[[], object], log: Path, prepare: Callable[[], None] | None = None) -> Ended:
    """Run a program to its end."""
    return Running(program, log, prepare).wait()


def limit_file_size(size: int) -> Callable[[], None]:
    """Writing beyond `size` bytes of a file fails with EFBIG, as it does with ENOSPC on a full disk."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def _child(program: Callable[[], object], log: Path, prepare: Callable[[], None] | None, begins: int) -> None:
    """Make the child what a program is when it begins, and run it; never returns.

    Args:
        program, log, prepare: as for `Running`.
        begins: end of a pipe, closed when the program begins.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 1
    try:
        _give_own_lock(tqdm)
        faulthandler.dump_traceback_later(PATIENCE / 2)  # says where a run hangs
        if prepare is not None:
            prepare()
        os.close(begins)
        status = _status_of(program)
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _give_own_lock(bar: type[tqdm]) -> None:
    """Locks of the parent's, one for each kind of bar, are shared: a trial that is killed while it draws keeps them."""
    bar.set_lock(threading.RLock())
    for kind in bar.__subclasses__():
        _give_own_lock(kind)


def _status_of(program: Callable[[], object]) -> int:
    try:
        value = program()
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return value if isinstance(value, int) else 0
