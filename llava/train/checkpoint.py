"""What a training run leaves on disk, and how the next one finds it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.compression.config import CompressionConfig
from llava.model.loading import PROJECTOR_FILE

logger = logging.getLogger(__name__)

_STATE_FILE = "trainer_state.json"
_FINISHED = (PROJECTOR_FILE, "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole `checkpoint-N` in a folder; one whose saving was interrupted is passed over."""
    whole = []
    for folder in _checkpoints(output_dir):
        if (folder / _STATE_FILE).is_file():
            whole.append(folder)
        else:
            logger.warning("%s is incomplete (no %s) and is passed over.", folder, _STATE_FILE)
    return whole[-1] if whole else None


def starting_point(output_dir: str | Path, overwrite: bool, asked: str | None) -> Path | None:
    """The checkpoint to go on from, None for a run from the beginning.

    Args:
        output_dir: of the run; its newest whole checkpoint is taken up by itself.
        overwrite: begin anew whatever the folder holds.
        asked: a checkpoint folder, where the user names one.

    Raises:
        ValueError: if the folder holds a finished model, or the checkpoint asked for is none.
    """
    if asked and asked.lower() != "true":
        if not (Path(asked) / _STATE_FILE).is_file():
            raise ValueError(
                f"--resume_from_checkpoint is {asked!r}, but there is no {_STATE_FILE}; give a checkpoint."
            )
        return Path(asked)
    if overwrite:
        return None
    _refuse_finished_run(Path(output_dir))
    return find_checkpoint(output_dir)


def remove_checkpoints(output_dir: str | Path) -> None:
    """Clear away the checkpoints of a run that is overwritten, so that the new one is never resumed from them."""
    for folder in _checkpoints(output_dir):
        logger.info("Removing %s of the run that is overwritten.", folder)
        shutil.rmtree(folder)


def require_same_compression(checkpoint: str | Path, compression: CompressionConfig) -> None:
    """Refuse to go on with another budget than the one a checkpoint was trained with.

    Raises:
        ValueError: names both.
    """
    saved = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8")).get("compression")
    if CompressionConfig.resolve(saved) != compression:
        raise ValueError(
            f"{checkpoint} was trained with compression {saved}, but this run asks for {compression.to_dict()}; "
            "give the same --compression, or another --output_dir."
        )


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The projector's weights on the host, under LLaVA's names `model.mm_projector.*`.

    Every rank must call it: under ZeRO-3 the weights are gathered from all of them.
    """
    named = {name: weight for name, weight in model.named_parameters() if "mm_projector." in name}
    with _gathered(list(named.values())):
        weights = {name: weight.detach().cpu().clone() for name, weight in named.items()}
    empty = [name for name, weight in weights.items() if weight.numel() == 0]
    if empty or not weights:
        raise RuntimeError(f"The projector has no weights to save ({empty or 'no mm_projector in the model'}).")
    return weights


def save_adapter(weights: dict[str, Tensor], config: Any, output_dir: str | Path, intermediate: bool) -> Path:
    """Write `mm_projector.bin` and `config.json` as LLaVA does; returns where the weights went.

    The final weights of a run whose folder itself is named `checkpoint-N` go to
    `<parent>/mm_projector/checkpoint-N.bin`.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    target = folder / PROJECTOR_FILE
    if folder.name.startswith("checkpoint-") and not intermediate:
        target = folder.parent / "mm_projector" / f"{folder.name}.bin"
        target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    torch.save(weights, unfinished)
    os.replace(unfinished, target)
    return target


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """Folders `checkpoint-N`, the newest last."""
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")}
    return sorted((folder for folder, step in steps.items() if step.isdigit()), key=lambda folder: int(steps[folder]))


def _refuse_finished_run(folder: Path) -> None:
    for name in _FINISHED:
        if (folder / name).exists():
            raise ValueError(
                f"{folder} already holds a trained model ({name}); choose another --output_dir or say "
                "--overwrite_output_dir True."
            )


@contextlib.contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        yield
