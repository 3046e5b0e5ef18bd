"""An all-reduce among several processes, with a time limit: the call that every training step depends on.

    python -m llava.doctor.communication BACKEND RANK WORLD FILE

is one of them; `try_communication` starts them all and ends those that hang.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from llava.cost.timing import wait_for

SECONDS = 90
VALUES = 2**24  # float32: 64 MiB
ROUNDS = 3


@dataclass(frozen=True)
class CommunicationTest:
    """Result of the trial.

    Attributes:
        backend, processes: name of the backend and number of processes of the trial.
        works: whether every process ended with the right sum in time.
        gigabytes_per_second: bus bandwidth, 2 (n - 1) / n of the bytes over the median time; None unless it works.
        detail: why it does not work.
    """

    backend: str
    processes: int
    works: bool
    gigabytes_per_second: float | None = None
    detail: str = ""


def try_communication(backend: str, processes: int, seconds: float = SECONDS) -> CommunicationTest:
    """Run one process a device (`nccl`, which is RCCL on ROCm) or on the CPU (`gloo`) and reduce 64 MiB.

    Args:
        backend: `nccl` or `gloo`.
        processes: how many.
        seconds: after which those that have not ended are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        workers = [_start(backend, rank, processes, meeting) for rank in range(processes)]
        deadline = time.monotonic() + seconds
        outputs = [_finish(worker, deadline) for worker in workers]
    late = [rank for rank, output in enumerate(outputs) if output is None]
    failed = [rank for rank, worker in enumerate(workers) if worker.returncode and rank not in late]
    if failed:
        output = outputs[failed[0]]
        last = (output[1].strip().splitlines() if output else []) or ["it said nothing"]
        return CommunicationTest(backend, processes, False, detail=f"process {failed[0]} failed: {last[-1][:200]}")
    if late:
        return CommunicationTest(backend, processes, False, detail=f"no answer within {seconds:.0f} s: it hangs")
    first = outputs[0]
    assert first is not None
    return CommunicationTest(backend, processes, True, json.loads(first[0].splitlines()[-1])["gigabytes_per_second"])


def _start(backend: str, rank: int, world: int, meeting: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llava.doctor.communication", backend, str(rank), str(world), str(meeting)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(worker: subprocess.Popen[str], deadline: float) -> tuple[str, str] | None:
    """Output and messages of a process; None if it had to be killed."""
    try:
        return worker.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()
        return None


def reduce_once(backend: str, rank: int, world: int, meeting: str) -> float:
    """Take part in the trial as one process; returns the bus bandwidth in GB/s.

    Raises:
        RuntimeError: if a sum is wrong.
    """
    device = torch.device(f"cuda:{rank}" if backend == "nccl" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group(
        backend, init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=timedelta(seconds=SECONDS)
    )
    values = torch.empty(VALUES, device=device)
    times = []
    for _ in range(ROUNDS):
        values.fill_(rank + 1)
        start = time.perf_counter()
        distributed.all_reduce(values)
        wait_for(device)
        times.append(time.perf_counter() - start)
        if not bool((values == world * (world + 1) / 2).all()):
            raise RuntimeError(f"an all-reduce over {world} processes gave a wrong sum")
    return 2 * (world - 1) / world * values.nbytes / sorted(times)[len(times) // 2] / 1e9


def main(arguments: Sequence[str]) -> None:
    """One process; it leaves without tearing the interpreter down, which gloo's threads do not survive always."""
    backend, rank, world, meeting = arguments
    speed = reduce_once(backend, int(rank), int(world), meeting)
    distributed.barrier()
    print(json.dumps({"gigabytes_per_second": speed}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
