"""Programs without an interpreter's start, which takes most of the time of a short one.

A server (`multiprocessing`'s `forkserver`) imports what the programs import, once for a process of the tests; each
program is then forked from it. It is a process like any other, with its own pid, environment, folder and files. Tests
of how a program is started or ended (by a shell, `torchrun`, `deepspeed`, a signal from a terminal) start it as users
do.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

PRELOADED = ("llava.train.train", "llava.train.launch", "deepspeed", "transformers.trainer", "datasets")
RANKS = 2
COLLECTED = (20_000, 50, 100)
"""For `gc.set_threshold`: Python's own 700 collects all the time among so many small objects, 8 % of the tests."""


def _started(target: Callable[..., None], environment: Mapping[str, str], *arguments: Any) -> BaseProcess:
    """A process forked from the server, which is begun where there is none."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=target, args=(dict(environment), *arguments))
    with patch.dict(os.environ, environment):
        process.start()
    return process


class _Forked:
    """What `subprocess.Popen` offers, as far as the tests use it."""

    def __init__(self, command: list[str], process: BaseProcess) -> None:
        self.args, self._process = command, process
        assert process.pid is not None
        self.pid = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedProgram(_Forked):
    """`-m MODULE FLAGS` or `-c CODE FLAGS`; what it says is dropped."""

    def __init__(self, words: list[str], cwd: str | Path = ".", env: Mapping[str, str] = os.environ) -> None:
        super().__init__(words, _started(_one, env, words, os.path.abspath(cwd), os.devnull, os.devnull))


class ForkedRanks(_Forked):
    """Two ranks of `llava/train/train_mem.py`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        super().__init__(command, _started(_launch, environment, command, str(folder), str(log)))


def _prepare(environment: dict[str, str], folder: str, output: str, errors: str) -> None:
    """Make the forked process what a new one would be."""
    multiprocessing.set_start_method("fork", force=True)  # Python's own choice, which the server overrode
    gc.freeze()  # the imported modules are not searched by every collection
    gc.set_threshold(*COLLECTED)
    os.setsid()
    os.chdir(folder)
    for name, stream in {output: 1, errors: 2}.items() if output != errors else ((output, 1),):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream)
    if output == errors:
        os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(environment)


def _leave(program: Callable[[], object]) -> None:
    """Run a program as Python would, and end the process with its status."""
    status = 1
    try:
        program()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _one(environment: dict[str, str], words: list[str], folder: str, output: str, errors: str) -> None:
    """A module or a text of Python."""
    _prepare(environment, folder, output, errors)
    sys.path.insert(0, folder)
    sys.argv[:] = words[1:]
    if words[0] == "-m":
        _leave(lambda: runpy.run_module(words[1], run_name="__main__", alter_sys=True))
    assert words[0] == "-c", words
    sys.argv[0] = "-c"
    _leave(lambda: exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"}))  # noqa: S102 - `python -c`


def _launch(environment: dict[str, str], command: list[str], folder: str, log: str) -> None:
    """Fork the ranks and wait. The first that fails ends the others; its status, or 1 after a signal, is returned."""
    _prepare(environment, folder, log, log)
    ranks = {_fork(command, rank) for rank in range(RANKS)}
    status = 0
    while ranks:
        ended, state = os.wait()
        ranks.discard(ended)
        code = os.waitstatus_to_exitcode(state)
        if code and not status:
            status = code if code > 0 else 1
            for rank in ranks:
                os.kill(rank, signal.SIGTERM if code == 75 else signal.SIGKILL)
    os._exit(status)


def _fork(command: list[str], rank: int) -> int:
    """A rank: the program run as a file, as `python FILE FLAGS` would."""
    child = os.fork()
    if not child:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)})
        sys.argv[:] = command
        sys.path.insert(0, str(Path(command[0]).parent))
        _leave(lambda: runpy.run_path(command[0], run_name="__main__"))
    return child
