"""Reading weight files: safetensors first, pickles only as weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

PROJECTOR_FILE = "mm_projector.bin"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.bin` or `.pt` file, on the host.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}; check the path.")
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file; every one is read, one at a time.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
