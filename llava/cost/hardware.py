"""Peak FLOP/s of devices, from the makers' data sheets, and the peak memory that a process has used."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch

from llava.common.yaml_files import table_beside


@dataclass(frozen=True)
class Accelerator:
    """Dense peaks of one device in TFLOP/s, products accumulated in float32; None where it has no such units.

    Attributes:
        name: pattern that the whole of its name must match, the maker and the series aside.
        fp32: matrix products in full float32.
        tf32: the same with inputs rounded to TensorFloat-32.
        fp16, bf16: matrix products in 16 bits.
    """

    name: str
    fp32: float
    tf32: float | None
    fp16: float | None
    bf16: float | None


ACCELERATORS = tuple(Accelerator(*row) for row in table_beside(__file__))
"""Of the makers' data sheets, which hardware.yaml names."""
_MAKERS = r"(NVIDIA |Tesla |GeForce |AMD |Instinct )*"


def peak_flops(device_name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
    """Dense peak of one device in FLOP/s; None for a device or a type that is not known, never a guess.

    A name must be known as a whole: slices (`... MIG 1g.10gb`, `A10-24Q`), laptop versions and names that stand for
    several devices (`MI250X / MI250`) are not.

    Args:
        device_name: name of the device, as `torch.cuda.get_device_name` gives it.
        dtype: data type that matrix products take; under autocast, that of autocast.
        tf32: whether float32 products may be rounded; without effect on devices that have no TF32.
    """
    for known in ACCELERATORS:
        if re.fullmatch(_MAKERS + known.name, device_name.strip()):
            full = known.tf32 if tf32 and known.tf32 is not None else known.fp32
            by_type = {torch.float32: full, torch.float16: known.fp16, torch.bfloat16: known.bf16}
            peak = by_type.get(dtype)
            return None if peak is None else peak * 1e12
    return None


def device_peak(device: torch.device, dtype: torch.dtype, tflops: float | None = None) -> float | None:
    """Peak of the device at hand in FLOP/s: what the user says, else what is known of it, else None.

    Args:
        device: device that trains; of a CPU nothing is known.
        dtype: data type that matrix products take.
        tflops: peak of one device in TFLOP/s, if the user gave it.

    Raises:
        ValueError: if `tflops` is not above 0.
    """
    if tflops is not None:
        if not tflops > 0:
            raise ValueError(f"--peak_tflops is {tflops}; it must be above 0, such as 312 for an A100 in bfloat16.")
        return tflops * 1e12
    if device.type != "cuda":
        return None
    rounded = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return peak_flops(torch.cuda.get_device_name(device), dtype, rounded)


class PeakMemory(NamedTuple):
    """The most memory used since the process started.

    Attributes:
        bytes: how much.
        kind: `allocated on the device` (tensors; the allocator holds more) or `resident in the process`.
    """

    bytes: int
    kind: str


def peak_memory_bytes(device: torch.device) -> PeakMemory:
    """Most memory that tensors took on a GPU (CUDA or ROCm); on other devices the most that the process held."""
    if device.type == "cuda":
        return PeakMemory(torch.cuda.max_memory_allocated(device), "allocated on the device")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts KiB on Linux, bytes on macOS
    return PeakMemory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "resident in the process")
