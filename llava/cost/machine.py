"""Describes this machine: processor, memory, accelerators, versions. Probes return None for what it does not say."""

from __future__ import annotations

import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import torch

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
class DeviceFacts:
    """An accelerator that torch sees."""

    name: str
    memory: int
    architecture: str


@dataclass(frozen=True)
class TorchBuild:
    """Which torch this is.

    Attributes:
        version: version of torch, as `torch.__version__` has it.
        backend: `CUDA`, `ROCm` or `CPU`: what it was built for.
        backend_version: version of CUDA or ROCm; None for the CPU.
        drivers: accelerators whose driver is on the machine, whether or not torch can use them.
    """

    version: str
    backend: str
    backend_version: str | None
    drivers: tuple[str, ...]


def version_of(package: str) -> str | None:
    """Installed version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python, torch, transformers and this project, by name."""
    packages = ("torch", "transformers", "duet-llava")
    return {"python": platform.python_version()} | {name: version_of(name) or "not installed" for name in packages}


def processor_name() -> str:
    """Model of the processor, or its architecture where the system does not say."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8").splitlines() if source.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return value_or(lambda: len(os.sched_getaffinity(0)), os.cpu_count() or 1)


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{processor_name()}, {os.cpu_count()} cores"


def describe_machine() -> dict[str, str]:
    """Date, system, processor, accelerator and versions, for the record of a measurement."""
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": ", ".join(f"{package} {version_of(package)}" for package in packages),
    }


def summary(devices: Iterable[str]) -> str:
    """Several devices in words, equal ones counted."""
    counts = Counter(devices)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def measured_on(device: torch.device) -> str:
    """One line that says what was measured on: device, threads of a processor, versions."""
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return f"{device_name(device)}{threads}; {', '.join(f'{name} {value}' for name, value in versions().items())}"


def probe_system(output_dir: str) -> System:
    """Interpreter, cores, RAM and disk."""
    unknown: tuple[int | None, int | None] = (None, None)
    memory, free = value_or(_memory, unknown)
    return System(
        name=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        processors=usable_cores(),
        memory=memory,
        memory_free=free,
        output_dir=output_dir,
        disk_free=value_or(lambda: shutil.disk_usage(_existing(Path(output_dir))).free, None),
        shared_memory=value_or(lambda: shutil.disk_usage("/dev/shm").total, None),
    )


def probe_devices() -> tuple[DeviceFacts, ...]:
    """The accelerators that torch can use: CUDA's or ROCm's, under one name."""
    if not torch.cuda.is_available():
        return ()
    return value_or(lambda: tuple(_device(index) for index in range(torch.cuda.device_count())), ())


def probe_torch() -> TorchBuild:
    """What torch was built for, and what else is here."""
    hip, cuda = torch.version.hip, torch.version.cuda
    backend, version = ("ROCm", hip) if hip else ("CUDA", cuda) if cuda else ("CPU", None)
    drivers = tuple(
        name for name, (node, tool) in _DRIVERS.items() if Path(node).exists() or shutil.which(tool) is not None
    )
    return TorchBuild(torch.__version__, backend, version, drivers)


def _device(index: int) -> DeviceFacts:
    properties = torch.cuda.get_device_properties(index)
    architecture = getattr(properties, "gcnArchName", "") if torch.version.hip else ""
    return DeviceFacts(
        properties.name, properties.total_memory, architecture or f"sm_{properties.major}{properties.minor}"
    )


def _memory() -> tuple[int | None, int | None]:
    """RAM and what is free of it, in bytes; a container's limit counts where it is lower."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    limit = value_or(lambda: int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")), total)
    return min(total, limit), min(free, limit)


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else _existing(path.parent)


def value_or(probe: Callable[[], Value], otherwise: Value) -> Value:
    """What a probe finds, or a stand-in where the machine does not answer."""
    try:
        return probe()
    except (OSError, RuntimeError, ValueError, KeyError, AttributeError):
        return otherwise
