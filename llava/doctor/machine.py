"""What this machine has. Every probe returns what it saw and raises nothing: a fault is a finding."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from llava.doctor.communication import CommunicationTest, try_communication
from llava.doctor.kernels import Check, attention_checks, precision_checks
from llava.doctor.packages import Package, read_packages, try_imports

Value = TypeVar("Value")
# What the drivers leave on a machine, and the torch build that uses them.
_DRIVERS = {"CUDA": ("/dev/nvidiactl", "nvidia-smi"), "ROCm": ("/dev/kfd", "rocm-smi")}


@dataclass(frozen=True)
class System:
    """The computer; bytes, None where it does not say.

    Attributes:
        name, python, processors: operating system, interpreter, usable cores.
        memory, memory_free: RAM, limited by the container's share.
        disk_free: where `output_dir` is or will be.
        shared_memory: size of /dev/shm, through which data workers hand over batches.
    """

    name: str
    python: str
    processors: int
    memory: int | None
    memory_free: int | None
    output_dir: str
    disk_free: int | None
    shared_memory: int | None


@dataclass(frozen=True)
class Device:
    """An accelerator that torch sees."""

    name: str
    memory: int
    architecture: str


@dataclass(frozen=True)
class TorchBuild:
    """Which torch this is.

    Attributes:
        version: as torch says.
        backend: `CUDA`, `ROCm` or `CPU`: what it was built for.
        backend_version: of CUDA or ROCm.
        drivers: accelerators whose driver is on the machine, whether or not torch can use them.
    """

    version: str
    backend: str
    backend_version: str | None
    drivers: tuple[str, ...]


@dataclass(frozen=True)
class Imports:
    """How importing went, in a process of its own.

    Attributes:
        errors: by module, why it cannot be imported although it is installed.
        operations: of DeepSpeed, whether each can be used or built here.
        problem: why nothing could be tried.
    """

    errors: dict[str, str]
    operations: dict[str, bool]
    problem: str | None = None


@dataclass(frozen=True)
class Machine:
    """Everything that was probed."""

    system: System
    torch: TorchBuild
    devices: tuple[Device, ...]
    precision: tuple[Check, ...]
    attention: tuple[Check, ...]
    packages: tuple[Package, ...]
    imports: Imports
    tools: dict[str, str | None]
    communication: CommunicationTest | None


def examine(output_dir: str = "./checkpoints", comm_test: bool = False) -> Machine:
    """Probe this machine.

    Args:
        output_dir: whose free disk counts; it need not exist.
        comm_test: try an all-reduce on a machine without several devices too, with two processes on the CPU.
    """
    devices = probe_devices()
    device = torch.device("cuda" if devices else "cpu")
    communication = None
    if len(devices) > 1:
        communication = try_communication("nccl", len(devices))
    elif comm_test:
        communication = try_communication("gloo", 2)
    return Machine(
        system=probe_system(output_dir),
        torch=probe_torch(),
        devices=devices,
        precision=precision_checks(device),
        attention=attention_checks(device),
        packages=_or(read_packages, ()),
        imports=probe_imports(),
        tools={tool: shutil.which(tool) for tool in ("g++", "ninja", "nvcc", "hipcc")},
        communication=communication,
    )


def probe_system(output_dir: str) -> System:
    """Interpreter, cores, RAM and disk."""
    unknown: tuple[int | None, int | None] = (None, None)
    memory, free = _or(_memory, unknown)
    return System(
        name=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        processors=_or(lambda: len(os.sched_getaffinity(0)), os.cpu_count() or 1),
        memory=memory,
        memory_free=free,
        output_dir=output_dir,
        disk_free=_or(lambda: shutil.disk_usage(_existing(Path(output_dir))).free, None),
        shared_memory=_or(lambda: shutil.disk_usage("/dev/shm").total, None),
    )


def probe_devices() -> tuple[Device, ...]:
    """The accelerators that torch can use: CUDA's or ROCm's, under one name."""
    if not torch.cuda.is_available():
        return ()
    return _or(lambda: tuple(_device(index) for index in range(torch.cuda.device_count())), ())


def probe_torch() -> TorchBuild:
    """What torch was built for, and what else is here."""
    hip, cuda = torch.version.hip, torch.version.cuda
    backend, version = ("ROCm", hip) if hip else ("CUDA", cuda) if cuda else ("CPU", None)
    drivers = tuple(
        name for name, (node, tool) in _DRIVERS.items() if Path(node).exists() or shutil.which(tool) is not None
    )
    return TorchBuild(torch.__version__, backend, version, drivers)


def probe_imports() -> Imports:
    """Import what training imports."""
    try:
        found = try_imports()
    except (OSError, RuntimeError, ValueError) as error:
        return Imports({}, {}, f"{error}")
    return Imports(found["errors"], found["operations"])


def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    architecture = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return Device(properties.name, properties.total_memory, architecture or f"sm_{properties.major}{properties.minor}")


def _memory() -> tuple[int | None, int | None]:
    """RAM and what is free of it, in bytes; a container's limit counts where it is lower."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    limit = _or(lambda: int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")), total)
    return min(total, limit), min(free, limit)


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else _existing(path.parent)


def _or(probe: Callable[[], Value], otherwise: Value) -> Value:
    """What a probe finds, or a stand-in where the machine does not answer."""
    try:
        return probe()
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError):
        return otherwise
