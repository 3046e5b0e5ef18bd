"""What a training run leaves on disk, and how the next one finds it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

ADAPTER_FILE = "mm_projector.bin"
_STATE_FILE = "trainer_state.json"
_FINISHED = (ADAPTER_FILE, "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole `checkpoint-N` in a folder; one whose saving was interrupted is passed over."""
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.removeprefix("checkpoint-")
        if not step.isdigit():
            continue
        if (folder / _STATE_FILE).is_file():
            found.append((int(step), folder))
        else:
            logger.warning("%s is incomplete (no %s) and is passed over.", folder, _STATE_FILE)
    return max(found)[1] if found else None


def refuse_finished_run(output_dir: str | Path, overwrite: bool) -> None:
    """Protect a finished model from being overwritten by another run.

    Raises:
        ValueError: if the folder holds weights and `overwrite` is False.
    """
    for name in _FINISHED:
        if not overwrite and (Path(output_dir) / name).exists():
            raise ValueError(
                f"{output_dir} already holds a trained model ({name}); choose another --output_dir or say "
                "--overwrite_output_dir True."
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
    target = folder / ADAPTER_FILE
    if folder.name.startswith("checkpoint-") and not intermediate:
        target = folder.parent / "mm_projector" / f"{folder.name}.bin"
        target.parent.mkdir(exist_ok=True)
    unfinished = target.with_name(target.name + ".tmp")
    torch.save(weights, unfinished)
    os.replace(unfinished, target)
    return target


@contextlib.contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters(parameters):
        yield
