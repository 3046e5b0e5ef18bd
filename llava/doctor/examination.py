"""Probes of this machine: devices, memory, packages, kernels.

A probe returns what it found and raises nothing: a fault is part of the result."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import torch

from llava.cost.machine import DeviceFacts, System, TorchBuild, probe_devices, probe_system, probe_torch, value_or
from llava.doctor.communication import CommunicationTest, try_communication
from llava.doctor.kernels import Check, attention_checks, precision_checks
from llava.doctor.packages import Imports, Package, read_packages, try_imports


@dataclass(frozen=True)
class Machine:
    """Everything that was probed."""

    system: System
    torch: TorchBuild
    devices: tuple[DeviceFacts, ...]
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
        packages=value_or(read_packages, ()),
        imports=try_imports(),
        tools={tool: shutil.which(tool) for tool in ("g++", "ninja", "nvcc", "hipcc")},
        communication=communication,
    )
