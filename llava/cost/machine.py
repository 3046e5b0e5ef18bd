"""What a measurement was made on, for its record."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "transformers", "duet-llava")


def versions() -> dict[str, str]:
    """Of Python, torch, transformers and this project."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{_processor()}, {os.cpu_count()} cores"


def summary(devices: Iterable[str]) -> str:
    """Several devices in words, equal ones counted."""
    counts = Counter(devices)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Model of the processor, or its architecture where the system does not say."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8").splitlines() if source.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
