"""The one check of a checkpoint before a run resumes from it: whole, undamaged, and free of code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from llava.checkpoints.pickles import UnsafePickleError, require_safe_pickles
from llava.common.own_scores import require_choice
from llava.model.collectives import of_all_ranks, ranks_must_agree, require_everywhere
from llava.train.facts import FACTS_FILE, facts_fault
from llava.train.manifest import MANIFEST_FILE, PIECE, VERIFY, Manifest, faults
from llava.train.readable import format_fault

logger = logging.getLogger(__name__)

STATE_FILE = "trainer_state.json"
# Names that resuming looks for; one that the manifest does not know was put there later.
_READ_BY_NAME = (
    STATE_FILE,
    FACTS_FILE,
    "optimizer*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "adapter_model.*",
    "non_lora_trainables.bin",
    "mm_projector.bin",
    "latest",
    "global_step*/*",
)
# Each may be a whole model, and transformers takes one of them by its own order.
_WHOLE_MODELS = {SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME}
_OF_THE_STATE: dict[str, tuple[type, ...]] = {
    "global_step": (int,),
    "max_steps": (int,),
    "epoch": (int, float, type(None)),
    "log_history": (list, type(None)),
    "best_metric": (int, float, type(None)),
    "best_model_checkpoint": (str, type(None)),
    "stateful_callbacks": (dict, type(None)),
}


def damage(folder: str | Path, verify: str = "full", light: bool = False) -> list[str]:
    """What is wrong with one checkpoint, each in a few words; empty if nothing is seen.

    A disk that cannot be read is damage of the checkpoint, too.

    Args:
        folder: folder of the checkpoint.
        verify: one of `manifest.VERIFY`.
        light: leave out what takes time with large files, as another process sees to it.

    Raises:
        ValueError: if `verify` is none of them.
    """
    require_choice("--verify_checkpoint", verify, VERIFY)
    folder = Path(folder)
    try:
        if not folder.is_dir():
            return [_other_than_a_folder(folder)]
        os.listdir(folder)
        largest = -1 if light else None if verify == "full" else PIECE
        found = faults(folder, largest) or _unlisted(folder)
        if not found and not light:
            found = _seen_without_digests(folder, verify == "full")
        of_the_facts = facts_fault(folder)
        return found or _state_faults(folder) or ([of_the_facts] if of_the_facts else _tag_faults(folder))
    except OSError as error:
        return [f"it cannot be read: {error.strerror or error}"]


def damage_seen_by_all(folder: str | Path, verify: str = "full") -> list[str]:
    """As `damage`, for all processes of a run: what one of them finds wrong is found by all. All ranks must call it.

    Rank 0 reads the files; the others look at names and sizes, whether they see the same folder.

    Raises:
        ValueError: on all of them, if a file of it would run code. That is not damage, for which another checkpoint is
            taken: somebody changed this one.
    """
    require_everywhere(lambda: _require_no_code(folder))
    rank = distributed.get_rank() if ranks_must_agree() else 0
    found = [(rank, fault) for fault in damage(folder, verify, light=rank > 0)]
    seen: dict[str, int] = {}
    for finder, fault in of_all_ranks(found):
        seen.setdefault(fault, finder)
    return [fault if finder == 0 else f"{fault} as process {finder} sees it" for fault, finder in seen.items()]


def _require_no_code(folder: str | Path) -> None:
    try:
        require_safe_pickles(folder)
    except UnsafePickleError:
        raise
    except ValueError:  # damaged files are said with all else that is wrong
        return


@contextlib.contextmanager
def taken_up(checkpoint: str | Path) -> Iterator[None]:
    """Explain in a sentence what goes wrong while a library loads the files of a checkpoint.

    Raises:
        ValueError: names the checkpoint, the reason, and what to do.
    """
    try:
        yield
    except (torch.OutOfMemoryError, UnsafePickleError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"The run cannot go on from {checkpoint}: {reason.rstrip('.')} ({type(error).__name__}). If the flags are "
            "those that it began with, the checkpoint is damaged or of another version: name an earlier one with "
            "--resume_from_checkpoint, or restore it."
        ) from error


def say_without_digests(folder: Path) -> None:
    """Tell the user where a checkpoint of an earlier version cannot be looked at as closely as others."""
    with contextlib.suppress(ValueError):
        if Manifest.read(folder).digests is None:
            logger.warning(
                "%s is of an earlier version, whose %s holds sizes and no digests: bytes of weights that changed since "
                "it was saved are seen only where they make a file unreadable or a number not finite.",
                folder,
                MANIFEST_FILE,
            )


def _other_than_a_folder(folder: Path) -> str:
    if folder.is_symlink() and not folder.exists():
        return f"it is a link to {os.readlink(folder)!r}, which is not there"
    return "it is a file, not a folder" if os.path.lexists(folder) else "it is not there"


def _unlisted(folder: Path) -> list[str]:
    """Files that resuming would read and that were not part of the checkpoint when it was saved."""
    known = Manifest.read(folder).sizes
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    read = list(_READ_BY_NAME)
    if _WHOLE_MODELS & known.keys() and "latest" not in known:  # DeepSpeed reads its own files, whatever lies there
        read += _WHOLE_MODELS
    strange = [name for name in names if name not in known and any(fnmatch(name, pattern) for pattern in read)]
    needed = [STATE_FILE]
    if "optimizer.pt" in known:  # transformers loads both or, without a word, neither
        needed.append("scheduler.pt")
    missing = [name for name in needed if name not in known]
    goes_on = not known.keys().isdisjoint({"optimizer.pt", "latest"})
    if goes_on and not any(fnmatch(name, "rng_state*.pth") for name in known):  # transformers would draw anew
        missing.append("rng_state.pth")
    return [f"{name} is missing" for name in missing] + [f"{name} is not in {MANIFEST_FILE}" for name in strange]


def _seen_without_digests(folder: Path, thorough: bool) -> list[str]:
    """Faults of files whose digests were not compared, by their own formats."""
    manifest = Manifest.read(folder)
    names = [
        name for name, size in manifest.sizes.items() if manifest.digests is None or (not thorough and size > PIECE)
    ]
    named = ((name, format_fault(folder / name, thorough)) for name in names)
    return [f"{name} cannot be read: {fault}" for name, fault in named if fault is not None]


def _state_faults(folder: Path) -> list[str]:
    try:
        state: Any = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return [f"{STATE_FILE} is not JSON"]
    if not isinstance(state, dict):
        return [f"{STATE_FILE} holds no object"]
    wrong = [
        f"{STATE_FILE} holds {name} of the type {type(state[name]).__name__}"
        for name, kinds in _OF_THE_STATE.items()
        if name in state and (not isinstance(state[name], kinds) or isinstance(state[name], bool))
    ]
    step, number = state.get("global_step"), step_of(folder.name)
    if not wrong and number is not None and step is not None and step != number:
        wrong = [f"{STATE_FILE} is of step {step}"]
    return wrong


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name; None if it is not named as this program names them."""
    digits = name.removeprefix("checkpoint-")
    return int(digits) if digits != name and digits.isascii() and digits.isdigit() else None


def _tag_faults(folder: Path) -> list[str]:
    """DeepSpeed's `latest` names the folder beside it that holds its files."""
    if not (folder / "latest").is_file():
        return []
    tag = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
    sound = tag.startswith("global_step") and "/" not in tag and (folder / tag).is_dir()
    return [] if sound else [f"latest names {tag[:80]!r}, which is no folder of DeepSpeed's in it"]
