"""What a measurement was made on, for its record."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "tokenizers", "numpy")


def describe_machine() -> dict[str, str]:
    """Date, processor, accelerator and versions."""
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{processor_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "versions": versions,
    }


def processor_name() -> str:
    """Model of the processor, or its architecture where the system does not say."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text(encoding="utf-8").splitlines() if source.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
