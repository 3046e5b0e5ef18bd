"""Checkpoints of a training run: finding, publishing and removing them in the output folder."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from llava.model.collectives import gathered, of_all_ranks, ranks_must_agree
from llava.model.parts import projector_weights
from llava.model.weights import PROJECTOR_FILE
from llava.train.manifest import MANIFEST_FILE
from llava.train.run_summary import SUMMARY_FILE
from llava.train.soundness import STATE_FILE, damage, damage_seen_by_all, say_without_digests, step_of

logger = logging.getLogger(__name__)

STAGING = ".unfinished"  # inside the output folder, so that a rename never crosses file systems
YES, _NO = ("true", "yes", "1"), ("false", "no", "0")  # as the command line reads them for other flags
FINISHED = (PROJECTOR_FILE, "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
# What else a model may bring along, and what would be read with one that does not: settings of its processor, adapters.
_BESIDE = (
    "adapter_config.json",
    "non_lora_trainables.bin",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def find_checkpoint(output_dir: str | Path, verify: str = "full") -> Path | None:
    """The newest whole `checkpoint-N` in a folder; None if nothing there is named like one. All ranks must call it.

    Each one that is passed over is named in the log with what is wrong with it.

    Args:
        output_dir: output folder of the run.
        verify: how closely to look, as in `soundness.damage`.

    Raises:
        ValueError: if there are checkpoints and all of them are damaged, or the folder cannot be read; a run must not
            begin anew beside what may be mended.
    """
    passed: list[str] = []
    for folder in reversed(_seen_by_all(output_dir)):
        wrong = damage_seen_by_all(folder, verify)
        if not wrong and step_of(folder.name) is None:
            wrong = ["its name holds no number of a step; checkpoint-N, as its trainer_state.json has it, is its name"]
        if not wrong:
            _say(f"The run goes on from {folder}, the newest that is whole.", bool(passed))
            say_without_digests(folder)
            return folder
        passed.append(f"{folder} is not whole ({_shortened(wrong)})")
        _say(f"{passed[-1]} and is passed over.")
    if passed:
        raise ValueError(
            f"No checkpoint in {output_dir} can be gone on from, and a new run does not begin among them by itself: "
            f"{'; '.join(passed)}. Restore one of them (if the disk was not to be reached, start again once it is), "
            "say --overwrite_output_dir True to remove them and begin anew, or choose another --output_dir."
        )
    return None


def starting_point(output_dir: str | Path, overwrite: bool, asked: str | None, verify: str = "full") -> Path | None:
    """The checkpoint to go on from, None for a run from the beginning. All ranks must call it.

    Args:
        output_dir: output folder of the run; its newest whole checkpoint is taken up by itself.
        overwrite: begin anew whatever the folder holds.
        asked: a checkpoint folder, where the user names one; `True` says what happens anyway, and `False` that there
            must be none to go on from.
        verify: how closely to look, as in `soundness.damage`.

    Raises:
        ValueError: if the folder holds a finished model, if the checkpoint asked for is none or damaged, if all that
            are there are, or if the run must not go on from a checkpoint that is there.
    """
    word = (asked or "").lower()
    if word in YES and overwrite:
        raise ValueError("--resume_from_checkpoint True goes on, --overwrite_output_dir True begins anew; choose one.")
    if word and word not in YES + _NO:
        assert asked is not None
        wrong = damage_seen_by_all(asked, verify)
        if wrong and not os.path.isfile(Path(asked) / STATE_FILE):
            raise ValueError(
                f"--resume_from_checkpoint is {asked!r}, but there is no {STATE_FILE} ({_shortened(wrong)}); give a "
                "checkpoint."
            )
        if wrong:
            raise ValueError(f"The checkpoint {asked!r} is not whole ({_shortened(wrong)}); give another one.")
        say_without_digests(Path(asked))
        return Path(asked)
    if overwrite:
        return None
    _refuse_finished_run(Path(output_dir))
    found = find_checkpoint(output_dir, verify)
    if word in _NO and found is not None:
        raise ValueError(
            f"--resume_from_checkpoint is {asked}, but {found} is there, and a new run would write among its "
            "checkpoints. Say --overwrite_output_dir True to remove them and begin anew, choose another --output_dir, "
            "or leave the flag out to go on."
        )
    return found


def remove_checkpoints(output_dir: str | Path) -> None:
    """Clear away the checkpoints of a run that is overwritten, so that the new one is never resumed from them.

    Of a link only the link goes; files that are named like a checkpoint are nobody's checkpoints, and stay, and so do
    folders without anything that a run writes into one.
    """
    for folder in _checkpoints(output_dir):
        if folder.is_symlink():
            logger.info("Removing the link %s of the run that is overwritten; what it leads to stays.", folder)
            folder.unlink()
        elif folder.is_dir() and not _is_ours(folder) and any(folder.iterdir()):
            logger.warning("%s is named like a checkpoint, but no run wrote it; it stays.", folder)
        elif folder.is_dir() and step_of(folder.name) is not None:
            logger.info("Removing %s of the run that is overwritten.", folder)
            shutil.rmtree(folder)


def prune_checkpoints(output_dir: str | Path, limit: int | None, newest: Path, best: str | None) -> None:
    """Remove older checkpoints, so that no more than some are left; one that is damaged does not count as one of them.

    transformers' `rotate_checkpoints` keeps the highest number, though it may be the folder that the run passed over.

    Args:
        output_dir: output folder of the run.
        limit: `--save_total_limit`; None or less than 1 removes nothing.
        newest: that was written just now; it and `best` stay. What has a higher number is of another start, and stays
            until the run writes it again.
        best: `TrainerState.best_model_checkpoint`.
    """
    if limit is None or limit < 1:
        return
    last = step_of(newest.name) or 0
    older = [
        folder for folder in _checkpoints(output_dir) if (step := step_of(folder.name)) is not None and step < last
    ]
    spared = [folder for folder in older if best is not None and folder.name == Path(best).name]
    older = [folder for folder in older if folder not in spared and _is_ours(folder)]
    sound = [folder for folder in older if not damage(folder, light=True)]
    left = max(limit - 1 - len(spared), 0)
    for folder in older:
        if folder not in sound[max(len(sound) - left, 0) :]:
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    """Whether a folder of this place holds what a run wrote."""
    return not folder.is_symlink() and any(os.path.isfile(folder / name) for name in (MANIFEST_FILE, STATE_FILE))


def adapter_weights(model: Any) -> dict[str, Tensor]:
    """The projector's weights on the host, under their names in the model, LLaVA's `model.mm_projector.*` for one.

    Every rank must call it: under ZeRO-3 the weights are gathered from all of them.
    """
    named = projector_weights(model)
    with gathered(named.values()):
        weights = {name: weight.detach().cpu().clone() for name, weight in named.items()}
    empty = [name for name, weight in weights.items() if weight.numel() == 0]
    if empty or not weights:
        raise RuntimeError(f"The projector has no weights to save ({empty or 'no projector in the model'}).")
    return weights


def save_adapter(weights: dict[str, Tensor], config: Any, folder: str | Path) -> None:
    """Write `mm_projector.bin` and `config.json` as LLaVA does."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    torch.save(weights, folder / PROJECTOR_FILE)


def clear_staging(output_dir: str | Path) -> None:
    """Remove the staging folder that an interrupted save left; what is none gets another name."""
    staging = Path(output_dir) / STAGING
    if staging.is_symlink() or (os.path.lexists(staging) and not staging.is_dir()):
        aside = _free_name(staging)
        logger.warning("%s is in the way of what a run saves and no folder of a run; it is now %s.", staging, aside)
        staging.rename(aside)
    shutil.rmtree(staging, ignore_errors=True)


def publish_checkpoint(staged: Path, final: Path) -> None:
    """Give a checkpoint that is written whole its name, in one step: at any moment it is there or it is not.

    What has the name already is a checkpoint that the run passed over, and goes; anything else is kept under another.
    """
    if os.path.lexists(final):
        replaced = staged.with_name(f"{final.name}-before")
        if final.is_symlink() or not os.path.isfile(final / MANIFEST_FILE):
            replaced = _free_name(final)
            logger.warning("%s is in the way of a checkpoint and no checkpoint itself; it is now %s.", final, replaced)
        final.rename(replaced)
    staged.rename(final)


def publish_model(staged: Path, output_dir: Path) -> None:
    """Move the files of a final model to where users look for them, those that mark a finished run last.

    Those of a model that is overwritten go first: nothing of it may vouch for the files of this one, or be read with
    them.

    The projector of a run whose folder itself is named `checkpoint-N` goes to
    `<parent>/mm_projector/checkpoint-N.bin`, as in LLaVA.
    """
    overwritten = any((output_dir / name).exists() for name in FINISHED)
    for name in (*_BESIDE, *FINISHED) if overwritten else ():
        (output_dir / name).unlink(missing_ok=True)
    for path in sorted(staged.iterdir(), key=lambda path: path.name in FINISHED):
        target = output_dir / path.name
        if path.name == PROJECTOR_FILE and output_dir.name.startswith("checkpoint-"):
            target = output_dir.parent / "mm_projector" / f"{output_dir.name}.bin"
            target.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    """What is named like a checkpoint in a folder, the newest last; odd names, such as `checkpoint-`, come first.

    Raises:
        ValueError: if the folder is there and cannot be read.
    """
    try:
        names = [name for name in os.listdir(output_dir) if name.startswith("checkpoint-")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(
            f"--output_dir {str(output_dir)!r} cannot be read ({error.strerror or error}), so nobody can tell whether "
            "there is a checkpoint to go on from; mend that, or choose another --output_dir."
        ) from error
    alike = [name for name in names if not any(letter.isalpha() for letter in name.removeprefix("checkpoint-"))]
    return sorted((Path(output_dir) / name for name in alike), key=_place)


def _place(path: Path) -> tuple[int, str]:
    step = step_of(path.name)
    return -1 if step is None else step, path.name


def _seen_by_all(output_dir: str | Path) -> list[Path]:
    """As `_checkpoints`, with what any process sees: they must look at the same ones in the same order."""
    try:
        found: list[Path | str] = [*_checkpoints(output_dir)]
    except ValueError as error:
        found = [str(error)]
    everything = of_all_ranks(found)
    unread = [one for one in everything if isinstance(one, str)]
    if unread:
        raise ValueError(unread[0])
    return sorted(set(everything), key=_place)


def _shortened(wrong: Sequence[str]) -> str:
    return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _say(sentence: str, needed: bool = True) -> None:
    """Log a warning on rank 0 only: all ranks came to the same result."""
    if needed and (not ranks_must_agree() or distributed.get_rank() == 0):
        logger.warning("%s", sentence)


def _free_name(path: Path) -> Path:
    places = (path.with_name(f"{path.name}.aside{number}") for number in itertools.count())
    return next(place for place in places if not os.path.lexists(place))


def _refuse_finished_run(folder: Path) -> None:
    if not (folder / SUMMARY_FILE).exists() and _checkpoints(folder):
        return  # of an earlier version, killed between model and summary: it goes on from its checkpoint to its end
    for name in FINISHED:
        if (folder / name).exists():
            raise ValueError(
                f"{folder} already holds a trained model ({name}); choose another --output_dir or say "
                "--overwrite_output_dir True."
            )
