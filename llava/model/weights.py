"""Weight files: which of a folder's count, what they hold, and writing their tensors into a model.

safetensors come first; pickles are read only as weights, so that a file cannot run anything.
"""

from __future__ import annotations

import functools
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llava.common.json_files import need, read_object
from llava.common.shown import shown
from llava.model.collectives import gathered, whole_shape

PROJECTOR_FILE = "mm_projector.bin"
# What a damaged file raises, a pickle that asks for more than tensors, or a disk. Pickles are small programs,
# so that other bytes than were written end in any of Python's errors.
_UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError,
    AttributeError, ArithmeticError, AssertionError, zipfile.BadZipFile,
)  # fmt: skip


def weight_files(folder: str | Path) -> list[Path]:
    """Files that hold a whole model's weights, in the order in which transformers looks; empty if there are none.

    Raises:
        ValueError: if an index names a file that is not there, or is no index.
    """
    folder = Path(folder)
    for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        path = folder / name
        if path.is_file():
            return _shards(path) if path.suffix == ".json" else [path]
    return []


def _shards(index: Path) -> list[Path]:
    try:
        content = read_object(index, "fetch it anew", mark=False)
        need(content, "metadata", dict, repr(str(index)))
        named = sorted({need(content["weight_map"], key, str, "weight_map") for key in content["weight_map"]})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{str(index)!r} is no index of weight files (an object with weight_map); fetch it anew."
        ) from (error)
    files = [index.parent / name for name in named]
    lost = [shown(path.name)[1:-1] for path in files if not os.path.isfile(path)]
    if lost:
        raise ValueError(
            f"{str(index)!r} names {len(named)} weight files, but {', '.join(lost)} is not there; the folder is "
            "incomplete, fetch or copy it anew."
        )
    return files


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors`, `.bin` or `.pt` file, on the host.

    Raises:
        ValueError: if there is no such file, or it holds anything but weights.
    """
    path = Path(path)
    with _explained(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        _require_checksums(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    return _named_tensors(held, path)


def read_header(path: str | Path) -> dict[str, Tensor]:
    """Names, shapes and data types of a weight file, as tensors on the meta device; no values are read.

    Raises:
        ValueError: if there is no such file, or it holds anything but weights.
    """
    path = Path(path)
    with _explained(path):
        held = load_state_dict(path, map_location="meta", weights_only=True)
    return _named_tensors(held, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say in words what is wrong with a weight file."""
    if not path.is_file():
        raise ValueError(f"There is no weight file {str(path)!r}; check the path.")
    try:
        yield
    except _UNREADABLE as error:
        details = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{str(path)!r} is damaged or holds something other than weights, so it is not opened; fetch it anew, or "
            f"ask whoever made it for safetensors. ({details})"
        ) from error


def _require_checksums(path: Path) -> None:
    """Compare the parts of a file of `torch.save` with the checksums that stand in it; PyTorch does not."""
    if not zipfile.is_zipfile(path):
        return  # as versions before 1.6 wrote them
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"the checksum of its part {broken!r} is another")


def _named_tensors(held: object, path: Path) -> dict[str, Tensor]:
    if not isinstance(held, Mapping) or not all(isinstance(tensor, Tensor) for tensor in held.values()):
        raise ValueError(f"{str(path)!r} does not hold tensors by name; give a file of weights.")
    return dict(held)


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a weight file; every one is read, one at a time.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_state_dict(path).items()}
    with _explained(path), safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118


def widest_dtype(files: Iterable[str | Path]) -> torch.dtype:
    """The narrowest data type that holds every floating-point weight of some files without rounding.

    Raises:
        ValueError: if a file cannot be read, or none holds such a weight.
    """
    held = {tensor.dtype for path in files for tensor in read_header(path).values() if tensor.is_floating_point()}
    if not held:
        raise ValueError("The weight files hold no floating-point numbers; give the folder of a model.")
    return functools.reduce(torch.promote_types, held)


def write_weights(model: nn.Module, held: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy tensors into the parameters of the same names.

    Args:
        model: whole, or partitioned by ZeRO-3.
        held: under the names that the parameters have in `model`.
        source: where they come from, for messages.

    Raises:
        ValueError: if a weight does not fit the model; names it.
    """
    own = dict(model.named_parameters())
    for name, tensor in held.items():
        _require_fit(name, tensor, own.get(name), source)
    with torch.no_grad(), gathered([own[name] for name in held], changed=True):
        for name, tensor in held.items():
            own[name].copy_(tensor)


def _require_fit(name: str, tensor: Tensor, target: nn.Parameter | None, source: str | Path) -> None:
    if target is None:
        raise ValueError(f"{source} holds {name!r}, which the base model lacks; give the model it was trained on.")
    if tuple(tensor.shape) != whole_shape(target):
        raise ValueError(
            f"{name!r} in {source} has shape {tuple(tensor.shape)}, but the base model needs {whole_shape(target)}; "
            "give the model it was trained on."
        )
