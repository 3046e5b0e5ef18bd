"""The process in which one part runs; started by `supervise`, which ends it.

python -m llava.bench.gpu_check.child --part golden --out FILE --device cuda
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from llava.bench.gpu_check.record import ResultLog
from llava.bench.gpu_check.supervise import SKIPPED_STATUS
from llava.bench.gpu_check.task import NotHereError, PartTask
from llava.common.number_flags import not_negative, positive
from llava.common.path_flags import FOLDER_TO_READ, TO_READ, TO_WRITE
from llava.common.program import as_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one part; returns the exit status."""
    began = time.monotonic()
    options = _parser().parse_args(arguments)
    _end_with(os.dup(0))
    import torch

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(1)  # fastest for what is tiny
    record = ResultLog(options.out, options.run, options.began)
    task = PartTask(
        options.part, record, device, options.shape, options.cases, options.tests, ends=began + options.seconds
    )
    try:
        return 0 if _part(options.part)(task) else 1
    except NotHereError as reason:
        task.found("row", reason=str(reason))
        return SKIPPED_STATUS


def _part(name: str) -> Callable[[PartTask], bool]:
    """What runs a part and says whether it passed. Only what the part needs is imported."""
    if name in ("environment", "golden", "tests"):
        from llava.bench.gpu_check import checks

        return {"environment": checks.environment, "golden": checks.golden, "tests": checks.device_tests}[name]
    from llava.bench.gpu_check import measure

    parts = (measure.prefill, measure.train, measure.decode, measure.attribution)
    return {part.__name__: part for part in parts}[name]


def _end_with(pipe: int) -> None:
    """Kill this process and what it started as soon as the other end of a pipe is gone, however its owner ended."""

    def wait() -> None:
        while os.read(pipe, 1024):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m llava.bench.gpu_check.child", description=__doc__)
    parser.add_argument("--part", required=True)
    parser.add_argument("--out", type=TO_WRITE, required=True)
    parser.add_argument("--run", default="alone")
    parser.add_argument("--began", type=not_negative(1e12), default=time.time())
    parser.add_argument("--seconds", type=positive(1e6), default=600)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--cases", type=TO_READ, default=Path("tests/golden"))
    parser.add_argument("--tests", type=FOLDER_TO_READ, default=Path("tests"))
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
