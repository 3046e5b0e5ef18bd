"""What a training run leaves on disk, and how the next one finds it."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.collectives import gathered
from llava.model.loading import PROJECTOR_FILE
from llava.train.manifest import faults

logger = logging.getLogger(__name__)

STAGING = ".unfinished"  # inside the output folder, so that a rename never crosses file systems
_STATE_FILE = "trainer_state.json"
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")  # as the command line reads them for other flags
FINISHED = (PROJECTOR_FILE, "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest whole `checkpoint-N` in a folder; one whose saving was interrupted is passed over."""
    whole = []
    for folder in _checkpoints(output_dir):
        wrong = faults(folder)
        if wrong:
            logger.warning("%s is not whole (%s) and is passed over.", folder, "; ".join(wrong[:3]))
        else:
            whole.append(folder)
    return whole[-1] if whole else None


def starting_point(output_dir: str | Path, overwrite: bool, asked: str | None) -> Path | None:
    """The checkpoint to go on from, None for a run from the beginning.

    Args:
        output_dir: of the run; its newest whole checkpoint is taken up by itself.
        overwrite: begin anew whatever the folder holds.
        asked: a checkpoint folder, where the user names one; `True` says what happens anyway, and `False` that there
            must be none to go on from.

    Raises:
        ValueError: if the folder holds a finished model, if the checkpoint asked for is none, or if the run must not
            go on from a checkpoint that is there.
    """
    word = (asked or "").lower()
    if word in _YES and overwrite:
        raise ValueError("--resume_from_checkpoint True goes on, --overwrite_output_dir True begins anew; choose one.")
    if word and word not in _YES + _NO:
        assert asked is not None
        if not (Path(asked) / _STATE_FILE).is_file():
            raise ValueError(
                f"--resume_from_checkpoint is {asked!r}, but there is no {_STATE_FILE}; give a checkpoint."
            )
        if wrong := faults(asked):
            raise ValueError(f"The checkpoint {asked!r} is not whole ({'; '.join(wrong[:3])}); give another one.")
        return Path(asked)
    if overwrite:
        return None
    _refuse_finished_run(Path(output_dir))
    found = find_checkpoint(output_dir)
    if word in _NO and found is not None:
        raise ValueError(
            f"--resume_from_checkpoint is {asked}, but {found} is there, and a new run would write among its "
            "checkpoints. Say --overwrite_output_dir True to remove them and begin anew, choose another --output_dir, "
            "or leave the flag out to go on."
        )
    return found


def remove_checkpoints(output_dir: str | Path) -> None:
    """Clear away the checkpoints of a run that is overwritten, so that the new one is never resumed from them."""
    for folder in _checkpoints(output_dir):
        logger.info("Removing %s of the run that is overwritten.", folder)
        shutil.rmtree(folder)


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """The projector's weights on the host, under LLaVA's names `model.mm_projector.*`.

    Every rank must call it: under ZeRO-3 the weights are gathered from all of them.
    """
    named = {name: weight for name, weight in model.named_parameters() if "mm_projector." in name}
    with gathered(named.values()):
        weights = {name: weight.detach().cpu().clone() for name, weight in named.items()}
    empty = [name for name, weight in weights.items() if weight.numel() == 0]
    if empty or not weights:
        raise RuntimeError(f"The projector has no weights to save ({empty or 'no mm_projector in the model'}).")
    return weights


def save_adapter(weights: dict[str, Tensor], config: Any, folder: str | Path) -> None:
    """Write `mm_projector.bin` and `config.json` as LLaVA does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    torch.save(weights, folder / PROJECTOR_FILE)


def clear_staging(output_dir: str | Path) -> None:
    """Remove what an interrupted save left."""
    shutil.rmtree(Path(output_dir) / STAGING, ignore_errors=True)


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a checkpoint that is written whole its name, in one step: at any moment it is there or it is not."""
    if final.exists():
        final.rename(staged.with_name(f"{final.name}-before"))
    staged.rename(final)


def publish_model(staged: Path, output_dir: Path) -> None:
    """Move the files of a final model to where users look for them, those that mark a finished run last.

    The projector of a run whose folder itself is named `checkpoint-N` goes to
    `<parent>/mm_projector/checkpoint-N.bin`, as in LLaVA.
    """
    for path in sorted(staged.iterdir(), key=lambda path: path.name in FINISHED):
        target = output_dir / path.name
        if path.name == PROJECTOR_FILE and output_dir.name.startswith("checkpoint-"):
            target = output_dir.parent / "mm_projector" / f"{output_dir.name}.bin"
            target.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """Folders `checkpoint-N`, the newest last."""
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in Path(output_dir).glob("checkpoint-*")}
    return sorted((folder for folder, step in steps.items() if step.isdigit()), key=lambda folder: int(steps[folder]))


def _refuse_finished_run(folder: Path) -> None:
    for name in FINISHED:
        if (folder / name).exists():
            raise ValueError(
                f"{folder} already holds a trained model ({name}); choose another --output_dir or say "
                "--overwrite_output_dir True."
            )
