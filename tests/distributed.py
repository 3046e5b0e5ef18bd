"""Starting training as users do, with one process or several, and reading what it left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from forked import ForkedRanks
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
ENTRY = "llava/train/train_mem.py"
Process = subprocess.Popen[bytes] | ForkedRanks
PATIENCE = 600  # seconds; ranks that wait for each other in vain are a failure, not a wait


def free_port() -> int:
    """A port that nobody listens on, below those that systems give to outgoing connections in the meantime."""
    draw = random.SystemRandom()
    while True:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port := draw.randrange(15_000, 32_000)))
            return port


def command(launcher: str, flags: list[str]) -> list[str]:
    """How `python`, `torchrun` or `deepspeed` starts a training, the latter two with two processes."""
    port = str(free_port())
    folder = Path(sys.executable).parent
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    elif launcher == "deepspeed":
        start = [sys.executable, str(folder / "deepspeed"), "--num_gpus", "2", "--master_port", port]
    else:
        start = [sys.executable]
    return [*start, ENTRY, *flags]


def environment() -> dict[str, str]:
    """Of a training on the CPU; compiled operations go to the user's usual cache."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"OMP_NUM_THREADS": "1", "PATH": path, "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def start(launcher: str, flags: list[str], log: Path) -> Process:
    """Begin a training in a process group of its own; what it says goes to a file.

    Besides the launchers of `command`, `forked` starts two processes without one, in a fraction of the time.
    """
    if launcher == "forked":
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        return ForkedRanks([ENTRY, *flags], ROOT, environment() | meeting, log)
    with log.open("wb") as file:
        return subprocess.Popen(
            command(launcher, flags), cwd=ROOT, env=environment(), stdout=file, stderr=file, start_new_session=True
        )


def wait(process: Process, log: Path, patience: float = PATIENCE) -> int:
    """Exit status; one that takes too long is killed with all its children, and fails."""
    try:
        return process.wait(timeout=patience)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not done after {patience} s\n{tail(log)}") from None
    finally:
        end(process)


def end(process: Process) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(launcher: str, flags: list[str], log: Path) -> None:
    """A whole training that must succeed."""
    status = wait(start(launcher, flags, log), log)
    assert status == 0, f"{launcher} ended with {status}\n{tail(log)}"


def tail(log: Path, size: int = 5000) -> str:
    """End of a log file."""
    return log.read_text(encoding="utf-8", errors="replace")[-size:]


def leaves_ctrl_c_to_its_parent(process: psutil.Process) -> bool:
    """What Linux calls SigIgn; a process that was forked just now has not come to it yet."""
    (ignored,) = re.findall(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(int(ignored, 16) >> (signal.SIGINT - 1) & 1)


def summary(folder: Path) -> dict:
    """`train_summary.json`."""
    return json.loads((folder / "train_summary.json").read_text(encoding="utf-8"))


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [point["loss"] for point in summary(folder)["curve"]]


def weights(folder: Path) -> dict[str, Tensor]:
    """All weights that a finished run left, whichever files they are in."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    for name in ("mm_projector.bin", "non_lora_trainables.bin"):
        if (folder / name).is_file():
            found |= torch.load(folder / name, weights_only=True)
    assert found, f"{folder} holds no weights"
    return found


def assert_equal(left: Path, right: Path) -> None:
    """Two finished runs have the same weights, bit for bit."""
    first, second = weights(left), weights(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
