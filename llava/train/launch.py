"""How a training process ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from torch import distributed


def run_and_exit(program: Callable[[], object]) -> None:
    """Run a program; in a group of several processes, end this one without tearing the interpreter down.

    Gloo's worker threads may still hold tensors when the interpreter goes away, which aborts a run that had
    finished and saved; so all ranks meet, flush, and leave at once. After an error a rank leaves without
    waiting: the launcher ends the others.
    """
    try:
        program()
    except Exception:
        if not _is_group():
            raise
        traceback.print_exc()
        _leave(1)
    if _is_group():
        distributed.barrier()
        _leave(0)


def _is_group() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
