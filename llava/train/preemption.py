"""Preemption: on SIGTERM or SIGUSR1, which clusters send before they take a machine away, a run saves and ends."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from llava.common.child_processes import SIGNALS
from llava.common.json_files import write_json
from llava.model.collectives import ranks_must_agree

logger = logging.getLogger(__name__)

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
PREEMPTED_FILE = "preempted.json"


class PreemptedError(Exception):
    """The run was stopped by a signal, and saved; `exit_status` is what the process ends with."""

    exit_status = EXIT_PREEMPTED


def ignore_further() -> None:
    """Ignore signals to stop until the process is gone: Python gives its own handlers up before that."""
    if threading.current_thread() is threading.main_thread():
        for name in SIGNALS:
            signal.signal(name, signal.SIG_IGN)


class StopOnSignal(TrainerCallback):
    """Saves and stops after the step in which a signal arrived at any rank."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.stopped = False
        self.interrupted = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals instead of ending on them; the former handlers come back at the end.

        After a stop they go on being noted, so that a second one does not end a process that has saved otherwise than
        with its status; `ignore_further` serves until the process is gone.

        Only a main thread hears signals; in another one nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {name: signal.signal(name, self._note) for name in SIGNALS}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            for name, handler in before.items():
                if self.stopped and name in SIGNALS:
                    continue
                signal.signal(name, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All ranks ask each other after every step, so that they stop after the same one.

        Raises:
            KeyboardInterrupt: if Ctrl-C was pressed while Python could not raise it, such as in a callback of `fork`.
        """
        if self.interrupted:
            raise KeyboardInterrupt
        stopping = self.received is not None
        if ranks_must_agree():
            anyone = torch.tensor(int(stopping), device=args.device)
            distributed.all_reduce(anyone, op=distributed.ReduceOp.MAX)
            stopping = bool(anyone)
        if stopping and not self.stopped:
            self.stopped = control.should_save = control.should_training_stop = True
            logger.warning("Told to stop (%s): saving after step %d.", self.received or "elsewhere", state.global_step)

    def leave(self, output_dir: str | Path, step: int, first_rank: bool) -> None:
        """End a run that was stopped: leave a note for whoever starts it again.

        Raises:
            PreemptedError: always.
        """
        if first_rank:
            write_json(Path(output_dir) / PREEMPTED_FILE, {"step": step, "signal": self.received})
        raise PreemptedError(f"stopped by {self.received or 'a signal to another rank'} after step {step}")
