"""Two training processes without a launcher and without two interpreters' start, most of the time of a short training.

A server (`multiprocessing`'s `forkserver`) imports what training imports, once for a process of the tests. Every
training is then a small launcher forked from it, which forks two ranks. They are processes like any other: of one
process group, with their own pid, environment and files, to be killed or told to stop. That `torchrun` and `deepspeed`
start, watch and end the same program is what the tests that name them are for.
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
from pathlib import Path
from unittest.mock import patch

PRELOADED = ("llava.train.train", "llava.train.launch", "deepspeed", "transformers.trainer", "datasets")
RANKS = 2


class ForkedRanks:
    """What `subprocess.Popen` offers, as far as the tests use it, for two ranks of `llava/train/train_mem.py`."""

    def __init__(self, command: list[str], folder: Path, environment: dict[str, str], log: Path) -> None:
        self.args = command
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        self._process = context.Process(target=_launch, args=(command, str(folder), environment, str(log)))
        with patch.dict(os.environ, environment):
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

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


def _launch(command: list[str], folder: str, environment: dict[str, str], log: str) -> None:
    """Fork the ranks and wait. The first that fails ends the others; its status, or 1 after a signal, is returned."""
    multiprocessing.set_start_method("fork", force=True)  # Python's own choice, which the server overrode
    gc.freeze()  # the imported modules are not searched by every collection
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
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
    if child:
        return child
    status = 1
    try:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)})
        sys.argv[:] = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
