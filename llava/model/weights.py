"""Weight files: which of a folder's count, what they hold, whether it fits a model, and writing it into one.

safetensors come first; pickles are read only as weights, so that a file cannot run anything.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llava.common.json_files import need, read_object
from llava.common.outside_files import DAMAGED, in_words
from llava.common.shown import shown
from llava.model.collectives import gathered, whole_shape
from llava.model.finite import not_finite
from llava.model.parts import NEWLINE, paths_of, projector_weights

logger = logging.getLogger(__name__)

PROJECTOR_FILE = "mm_projector.bin"
# Pickles are small programs, so that other bytes than were written end in any of Python's errors.
_UNREADABLE = (*DAMAGED, AssertionError, pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile)


class Held(NamedTuple):
    """A weight of a file: its shape, and the file."""

    shape: tuple[int, ...]
    path: str | Path


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
        ) from error
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
    try:
        if not path.is_file():
            raise ValueError(f"There is no weight file {str(path)!r}; check the path.")
        path.open("rb").close()
    except OSError as error:  # safetensors says of every such file that there is none
        raise ValueError(in_words(error)) from error
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
    eighths = [dtype for dtype in held if dtype.itemsize == 1]
    if eighths:
        raise ValueError(
            f"The weight files hold numbers of 8 bits ({eighths[0]}), so the model is quantised; give the one that it "
            "was made from."
        )
    return functools.reduce(torch.promote_types, held)


def require_fit(
    held: Mapping[str, Held],
    expected: Mapping[str, tuple[int, ...]],
    needed: Iterable[str],
    described: str,
    advice: str,
    source: str | Path,
) -> None:
    """Compare the names and shapes of some weights with those of the model that they are meant for.

    Args:
        held: weights of files, by the names that they have in the model.
        expected: shapes of the model's weights.
        needed: names that must not be missing.
        described: what the model is called in messages.
        advice: what to do where a weight does not fit, as half a sentence.
        source: file or folder that the needed weights are looked for in.

    Raises:
        ValueError: if a weight is unknown, of another shape or missing; names it, the shapes and the file.
    """
    unknown = [name for name in held if name not in expected]
    if unknown:
        shape, path = held[unknown[0]]
        raise ValueError(
            f"{str(path)!r} holds {unknown[0]!r} of shape {shape}{_more(unknown)}, which {described} lacks; {advice}."
        )
    other = [name for name, weight in held.items() if weight.shape != expected[name]]
    if other:
        shape, path = held[other[0]]
        raise ValueError(
            f"{other[0]!r} in {str(path)!r} has shape {shape}, but {described} needs "
            f"{expected[other[0]]}{_more(other)}; {advice}."
        )
    missing = [name for name in needed if name not in held]
    if missing:
        raise ValueError(
            f"{str(source)!r} lacks {missing[0]!r} of shape {expected[missing[0]]}{_more(missing)}, but {described} "
            f"has it; it is incomplete, or {advice}."
        )


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more such weights)" if len(names) > 1 else ""


def write_weights(
    model: nn.Module,
    held: Mapping[str, Tensor],
    source: str | Path,
    needed: Iterable[str] = (),
    described: str = "the base model",
    advice: str = "give the model it was trained on",
) -> None:
    """Copy tensors into the parameters of the same names, if all of them fit.

    Args:
        model: whole, or partitioned by ZeRO-3.
        held: weights under the names of the parameters of `model`.
        source: where they come from, for messages.
        needed, described, advice: see `require_fit`.

    Raises:
        ValueError: if a weight does not fit the model, or one that is needed is missing; names it.
    """
    own = dict(model.named_parameters())
    shapes = {name: Held(tuple(tensor.shape), source) for name, tensor in held.items()}
    expected = {name: whole_shape(weight) for name, weight in own.items()}
    require_fit(shapes, expected, needed, described, advice, source)
    with torch.no_grad(), gathered([own[name] for name in held], changed=True):
        for name, tensor in held.items():
            own[name].copy_(tensor)


def load_projector(projector: nn.Module, path: str | Path, newline: nn.Parameter | None = None) -> None:
    """Read `mm_projector.bin` (or a safetensors file) into a projector, all of it.

    Args:
        projector: projector of the model.
        path: path of the file.
        newline: `image_newline` of the model, which the file may hold too; LLaVA's own programs leave it out.

    Raises:
        ValueError: if a weight is missing, unknown, of another shape, there twice or no finite number; names it.
    """
    held = read_state_dict(path)
    named = [name for name in held if "mm_projector." in name]
    weights = {name[name.index("mm_projector.") :]: held[name] for name in named}
    if len(weights) < len(named):
        raise ValueError(f"{str(path)!r} holds the projector twice ({', '.join(named)}); keep one of them.")
    own = nn.ModuleDict({"mm_projector": projector})
    needed = [name for name, _ in own.named_parameters()]
    if newline is not None:
        own.register_parameter(NEWLINE, newline)
        name = next((name for name in held if name.rpartition(".")[2] == NEWLINE), None)
        if name is not None:
            weights[NEWLINE] = held[name]
        else:
            logger.warning("%s holds no %s: it starts with random numbers.", path, NEWLINE)
    _require_trained({name: held[name] for name in named}, path)
    if len(weights) < len(held):
        logger.warning("%s holds %d weights beside the projector's; they are not used.", path, len(held) - len(weights))
    advice = "the file belongs to another tower, language model or --mm_projector_type"
    write_weights(own, weights, path, needed, "the model", advice)
    logger.info("Read the projector from %s (%d weights).", path, len(weights))


def load_projectors(model: Any, path: str | Path) -> None:
    """Read the file that pre-training left into the projectors of a model of any family, all of it.

    Args:
        model: whole, or partitioned by ZeRO-3; peft's model may stand around it.
        path: `mm_projector.bin` or a safetensors file, with LLaVA's names or those of the model.

    Raises:
        ValueError: if a weight is missing, unknown, of another shape or no finite number; names it.
    """
    projectors = model.projectors()
    if paths_of(model, projectors)[0].endswith("mm_projector"):
        load_projector(projectors[0], path, model.get_model().image_newline)
        return
    needed = projector_weights(model)
    advice = "the file was trained with another model"
    held = read_state_dict(path)
    _require_trained(held, path)
    write_weights(model, held, path, needed, "the model", advice)
    logger.info("Read the projector from %s (%d weights).", path, len(needed))


def _require_trained(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Raise ValueError for weights of a file that no training goes on from: NaN, infinity and whole numbers."""
    broken = not_finite(weights.items()) + [name for name in weights if not weights[name].is_floating_point()]
    if broken:
        raise ValueError(
            f"{broken[0]!r} in {str(path)!r} holds NaN, infinity or whole numbers{_more(broken)}, which no training "
            "goes on from; give an earlier checkpoint's file, or pretrain anew."
        )


def grow_vocabulary(model: Any, rows: int) -> None:
    """Give both embeddings of a language model so many rows; new ones start as the mean of the others.

    Args:
        model: whole, or partitioned by ZeRO-3.
        rows: number of rows; at least as many as there are.
    """
    old = model.get_input_embeddings().num_embeddings
    model.resize_token_embeddings(rows, mean_resizing=False)
    for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
        with torch.no_grad(), gathered([embedding.weight], changed=True):
            embedding.weight[old:] = embedding.weight[:old].mean(dim=0)
