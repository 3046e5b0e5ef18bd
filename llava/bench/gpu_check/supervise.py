"""Runs one part in a process of its own, for so long and no longer; nothing of it is left behind.

Needs the standard library alone, so that a result is written whatever torch or a driver does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from llava.bench.gpu_check.record import ResultLog

PASSED, FAILED, OVER, NOT_RUN, INTERRUPTED = "passed", "failed", "over its limit", "not run", "interrupted"
SKIPPED_STATUS = 3
"""Exit status of a part that cannot be run here and said why."""

_TAIL = 3000  # characters of what a part printed that are kept
_PATIENCE = 10  # seconds that a killed process may take to be gone


def run_part(
    name: str, command: Sequence[str], limit: float, record: ResultLog, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command as a part, with a line at its start and at its end.

    Args:
        name: name of the part.
        command: command that runs it. Its standard input is a pipe that ends when this process does.
        limit: seconds after which it is killed, with everything that it started.
        record: takes the lines.
        environment: environment of the command; this process's if None.

    Returns:
        `passed`, `failed`, `over its limit` or `not run`.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
        state = INTERRUPTED
        details: dict[str, Any] = {}
        try:
            record.add(name, "start", limit=round(limit, 1), pid=child.pid)
            state, details = _outcome(child, limit)
        finally:
            gone = _end(child)
            if state != PASSED:
                details["output"] = _tail(log)
            if not gone:
                details["note"] = f"Process {child.pid} was killed but is still there."
            record.add(name, "end", state=state, seconds=round(time.monotonic() - began, 2), **details)
    return state


def _outcome(child: subprocess.Popen[bytes], limit: float) -> tuple[str, dict[str, Any]]:
    try:
        status = child.wait(timeout=max(0.0, limit))
    except subprocess.TimeoutExpired:
        return OVER, {}
    if status == 0:
        return PASSED, {}
    return NOT_RUN if status == SKIPPED_STATUS else FAILED, {"status": status}


def _end(child: subprocess.Popen[bytes]) -> bool:
    """Kill a part and all that it started; returns whether it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.stdin is not None:
        child.stdin.close()
    try:
        child.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tail(log: IO[bytes]) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(0, log.tell() - 4 * _TAIL))
    return log.read().decode("utf-8", errors="replace")[-_TAIL:]
