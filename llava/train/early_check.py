"""A full save before the first step, read back and checked, so that a failure shows before hours of training."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from llava.checkpoints.fit import without_partitions
from llava.checkpoints.lora import NON_LORA_FILE
from llava.checkpoints.opening import open_model
from llava.checkpoints.pickles import UnsafePickleError, require_safe_pickles
from llava.common.own_scores import unknown_choice
from llava.model.collectives import whole_shape
from llava.model.parts import projector_weights
from llava.model.weights import PROJECTOR_FILE, read_shapes
from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
_ADAM_BYTES = 8  # two float32 values for each trained weight


def expected_weights(model: Any, part: str) -> dict[str, Shape]:
    """Names and shapes that a checkpoint must hold.

    Args:
        model: model in training, wrapped by peft for `lora`.
        part: `model`, `adapter_only` or `lora`.

    Raises:
        ValueError: for any other part.
    """
    match part:
        case "model":
            return {name: whole_shape(weight) for name, weight in model.named_parameters()}
        case "adapter_only":
            return {name: whole_shape(weight) for name, weight in projector_weights(model).items()}
        case "lora":
            trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
            return {name.replace(".default.", "."): whole_shape(weight) for name, weight in trained.items()}
        case other:
            raise unknown_choice("part", other, ("model", "adapter_only", "lora"))


def require_whole(
    folder: str | Path,
    expected: dict[str, Shape],
    shapes_here: Callable[[Mapping[str, Shape]], Mapping[str, Shape]] | None = None,
) -> None:
    """Read the weights of a checkpoint back and compare names and shapes.

    Args:
        folder: folder of the checkpoint.
        expected: result of `expected_weights`.
        shapes_here: names and shapes that the weights of a file get in the model; None where they have the same.

    Raises:
        OSError: if a weight is missing or has another shape; names it.
    """
    folder = Path(folder)
    if in_pieces(folder):
        logger.info("Weights are saved in pieces (stage3_gather_16bit_weights_on_model_save is off); not read back.")
        return
    found: dict[str, Shape] = {}
    for path in _weights_in(folder):
        shapes = read_shapes(path)
        found |= shapes if shapes_here is None else shapes_here(shapes)
    for name, shape in expected.items():
        if found.get(name) != shape:
            was = f"has shape {found[name]}" if name in found else "is missing"
            raise OSError(f"The trial save is not whole: {name} {was}, expected {shape}. Nothing was trained yet.")


def require_opens(folder: str | Path, base: str | None, args: TrainingArguments) -> None:
    """Open a checkpoint with the loader that its users have, on the meta device: everything but the numbers.

    Args:
        folder: folder of the checkpoint.
        base: model under a projector or adapters; None for a whole model.
        args: arguments of the run.

    Raises:
        OSError: if it does not open.
    """
    if in_pieces(Path(folder)):
        return
    try:
        with without_partitions(), torch.random.fork_rng(devices=[]):
            open_model(str(folder), base, device_map={"": "meta"}, device="cpu", cache_dir=args.cache_dir)
    except (ValueError, OSError) as error:
        raise OSError(f"The trial save cannot be opened again: {error} Nothing was trained yet.") from error


def require_resumable(folder: str | Path) -> None:
    """Look at a checkpoint as the next start will before it goes on from it.

    Raises:
        OSError: if a library writes more than this version knows to be harmless; resuming would refuse it.
    """
    try:
        require_safe_pickles(folder)
    except UnsafePickleError as error:
        raise OSError(
            f"The trial save could not be gone on from: {error.what} The installed torch, transformers or DeepSpeed "
            "writes what this version does not know; install those of constraints.txt. Nothing was trained yet."
        ) from error


def in_pieces(folder: Path) -> bool:
    """Whether a checkpoint holds DeepSpeed's pieces instead of weights, as its settings can ask for."""
    return not _weights_in(folder) and any(folder.glob("global_step*"))


def _weights_in(folder: Path) -> list[Path]:
    places = [*sorted(folder.glob("*.safetensors")), folder / PROJECTOR_FILE, folder / NON_LORA_FILE]
    return [path for path in places if path.is_file()]


def require_room(
    folder: str | Path, written: int, trained_weights: int, optimizer_is_saved: bool, limit: int | None
) -> None:
    """Compare the free space with what checkpoints will take.

    Args:
        folder: where they go.
        written: bytes of the trial save.
        trained_weights: numbers that have optimizer state.
        optimizer_is_saved: that state was part of the trial save (DeepSpeed makes it at the start).
        limit: checkpoints that are kept; None keeps all, and only the first is asked about.

    Raises:
        OSError: if they do not fit.
    """
    one = written + (0 if optimizer_is_saved else _ADAM_BYTES * trained_weights)
    needed = one * ((limit or 0) + 1)  # the new one is written before the oldest is removed
    free = shutil.disk_usage(folder).free
    logger.info("A checkpoint takes about %.2f GiB; %.1f GiB are free in %s.", one / 2**30, free / 2**30, folder)
    if needed > free:
        raise OSError(
            f"{(limit or 0) + 1} checkpoints of about {one / 2**30:.1f} GiB do not fit into the {free / 2**30:.1f} GiB "
            f"that are free in {folder}; free some, choose another --output_dir, or lower --save_total_limit."
        )
