"""One full save before the first step: what would fail after hours fails now."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from torch import nn

from llava.model.collectives import whole_shape
from llava.model.loading import PROJECTOR_FILE, read_shapes
from llava.model.lora import NON_LORA_FILE

logger = logging.getLogger(__name__)

_ADAM_BYTES = 8  # two float32 values for each trained weight


def expected_weights(model: nn.Module, part: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a checkpoint must hold.

    Args:
        model: as it is trained, wrapped by peft for `lora`.
        part: `model`, `adapter_only` or `lora`.
    """
    named = {name: (whole_shape(weight), weight.requires_grad) for name, weight in model.named_parameters()}
    if part == "adapter_only":
        return {name: shape for name, (shape, _) in named.items() if "mm_projector." in name}
    if part == "lora":
        trained = {name: shape for name, (shape, is_trained) in named.items() if is_trained}
        return {name.replace(".default.", "."): shape for name, shape in trained.items()}
    return {name: shape for name, (shape, _) in named.items()}


def require_whole(folder: str | Path, expected: dict[str, tuple[int, ...]]) -> None:
    """Read the weights of a checkpoint back and compare names and shapes.

    Raises:
        OSError: if a weight is missing or has another shape; names it.
    """
    folder = Path(folder)
    found: dict[str, tuple[int, ...]] = {}
    for path in [*sorted(folder.glob("*.safetensors")), folder / PROJECTOR_FILE, folder / NON_LORA_FILE]:
        if path.is_file():
            found |= read_shapes(path)
    if not found and any(folder.glob("global_step*")):
        logger.info("Weights are saved in pieces (stage3_gather_16bit_weights_on_model_save is off); not read back.")
        return
    for name, shape in expected.items():
        if found.get(name) != shape:
            was = f"has shape {found[name]}" if name in found else "is missing"
            raise OSError(f"The trial save is not whole: {name} {was}, expected {shape}. Nothing was trained yet.")


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
