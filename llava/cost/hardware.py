"""Peak FLOP/s of devices, from the makers' data sheets, and the peak memory that a process has used."""

from __future__ import annotations

import re
import resource
import sys
from dataclasses import dataclass
from typing import NamedTuple

import torch


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


# Of the makers' data sheets. Where a sheet gives figures with 2:4 sparsity only (Hopper, Blackwell), these are halves.
# Consumer cards run 16-bit products at half speed when they accumulate in float32, as training does.
# MI250 and MI250X are two devices each to PyTorch, so theirs are halves too.
ACCELERATORS = (
    # NVIDIA V100, V100S Tensor Core GPU data sheets (2020).
    Accelerator(r"V100-SXM2-(16|32)GB", 15.7, None, 125.0, None),
    Accelerator(r"V100-PCIE-(16|32)GB", 14.0, None, 112.0, None),
    Accelerator(r"V100S-PCIE-32GB", 16.4, None, 130.0, None),
    # NVIDIA A100 and A10 Tensor Core GPU data sheets (2021).
    Accelerator(r"A100(-SXM4|-SXM|-PCIE)?[- ](40|80)GB( PCIe)?", 19.5, 156.0, 312.0, 312.0),
    Accelerator(r"A10", 31.2, 62.5, 125.0, 125.0),
    # NVIDIA H100 (SXM, PCIe: 2022 and 2023; NVL: 2024) and H200 (2024) Tensor Core GPU data sheets.
    Accelerator(r"H100 80GB HBM3", 67.0, 494.7, 989.4, 989.4),
    Accelerator(r"H100 PCIe", 51.0, 378.0, 756.0, 756.0),
    Accelerator(r"H100 NVL", 60.0, 417.5, 835.5, 835.5),
    Accelerator(r"H200", 67.0, 494.7, 989.4, 989.4),
    Accelerator(r"H200 NVL", 60.0, 417.5, 835.5, 835.5),
    # NVIDIA Blackwell data sheet (2025), HGX B200.
    Accelerator(r"B200", 75.0, 1100.0, 2250.0, 2250.0),
    # NVIDIA L40S data sheet (2023).
    Accelerator(r"L40S", 91.6, 183.0, 362.05, 362.05),
    # NVIDIA GA102 and Ada architecture white papers, appendices with the whole cards.
    Accelerator(r"RTX 3090", 35.6, 35.6, 71.2, 71.2),
    Accelerator(r"RTX 4090", 82.6, 82.6, 165.2, 165.2),
    # AMD Instinct MI210, MI250, MI250X data sheets (2022): the figures of matrix cores.
    Accelerator(r"MI210", 45.3, None, 181.0, 181.0),
    Accelerator(r"MI250", 45.25, None, 181.05, 181.05),
    Accelerator(r"MI250X", 47.85, None, 191.5, 191.5),
    # AMD Instinct MI300X (2023), MI325X (2024), MI350X and MI355X (2025) data sheets.
    Accelerator(r"MI300X( OAM)?", 163.4, 653.7, 1307.4, 1307.4),
    Accelerator(r"MI325X( OAM)?", 163.4, 653.7, 1307.4, 1307.4),
    Accelerator(r"MI350X( OAM)?", 144.2, None, 2306.9, 2306.9),
    Accelerator(r"MI355X( OAM)?", 157.3, None, 2516.6, 2516.6),
)
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
