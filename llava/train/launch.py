"""Runs a training program and ends its process with the right exit status, on all ranks."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable

from torch import distributed

from llava.common.outside_files import in_words, told_by_system
from llava.common.program import INTERRUPTED
from llava.model.collectives import ranks_must_agree
from llava.train.one_run import RefusedElsewhereError
from llava.train.preemption import PreemptedError, ignore_further

logger = logging.getLogger(__name__)

EXPLAINED = (ValueError, OSError, FloatingPointError)  # what the package raises about flags, data, models and disks


def run_and_exit(program: Callable[[], object]) -> None:
    """Run a program; in a group of several processes, end this one without tearing the interpreter down.

    Gloo's worker threads may still hold tensors when the interpreter goes away, which aborts a run that had
    finished and saved; so all ranks meet, flush, and leave at once. After an error or Ctrl-C a rank leaves without
    waiting: the launcher ends the others. A run that was told to stop, and saved, ends with status 75.

    An error that this package raised about what it was given, and the system about a file, is said in its sentence,
    with status 1; Ctrl-C ends with status 130 and a word; any other error comes with its traceback.
    """
    try:
        program()
    except PreemptedError as stop:
        ignore_further()
        logger.warning("%s", stop)
        if not ranks_must_agree():
            sys.exit(stop.exit_status)
        distributed.barrier()
        _leave(stop.exit_status)
    except (Exception, KeyboardInterrupt) as error:
        explained = isinstance(error, EXPLAINED) and (_raised_here(error) or told_by_system(error))
        if explained and not isinstance(error, RefusedElsewhereError):
            sys.stderr.write(f"error: {in_words(error)}\n")
        interrupted = isinstance(error, KeyboardInterrupt)
        if interrupted:
            sys.stderr.write("Stopped.\n")
        if not ranks_must_agree():
            if explained or interrupted:
                sys.exit(INTERRUPTED if interrupted else 1)
            raise
        if not explained and not interrupted:
            traceback.print_exc()
        _leave(INTERRUPTED if interrupted else 1)
    if ranks_must_agree():
        distributed.barrier()
        _leave(0)


def _raised_here(error: BaseException) -> bool:
    """Whether the frame that raised an error is this package's own."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("llava.")


def _leave(status: int) -> None:
    """End this process at once, its data workers first, which would otherwise live on for seconds."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
