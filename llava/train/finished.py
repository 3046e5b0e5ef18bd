"""Recognises that a run has finished already, so that starting it again trains nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from llava.model.weights import weight_files
from llava.train.arguments import TrainingArguments
from llava.train.checkpoint import FINISHED, YES, clear_staging
from llava.train.facts import RunFacts, what_differs
from llava.train.manifest import PIECE
from llava.train.readable import format_fault
from llava.train.run_summary import SUMMARY_FILE

logger = logging.getLogger(__name__)


def finished_run(args: TrainingArguments) -> RunFacts | None:
    """The facts of the run that finished in the output folder; None if there is none, or this one is to begin anew.

    A model without facts, of an earlier version or another program, is none.
    """
    folder = Path(args.output_dir)
    asked = (args.resume_from_checkpoint or "").lower()
    if args.overwrite_output_dir or asked not in ("", *YES):
        return None
    if not any((folder / name).exists() for name in FINISHED):
        return None
    try:
        summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return RunFacts.from_dict(summary.get("run")) if isinstance(summary, dict) else None


def require_finished(then: RunFacts, now: RunFacts, args: TrainingArguments) -> Path:
    """Log that a run has finished already, and remove the staging folder that a kill at its end may have left.

    Args:
        then: facts of the run that finished in the output folder.
        now: facts of the one that was started.
        args: arguments of the latter.

    Returns:
        the output folder.

    Raises:
        ValueError: if the folder holds the model of another run, or a file of it is damaged; says what it is.
    """
    different = what_differs(then, now)
    if different:
        raise ValueError(
            f"{args.output_dir} already holds a trained model of another run: {different[0]} Choose another "
            "--output_dir or say --overwrite_output_dir True."
        )
    if args.should_save:
        _require_whole(Path(args.output_dir), args.verify_checkpoint)
        clear_staging(args.output_dir)
    logger.info("%s holds the model of this very run, which has finished; nothing is left to do.", args.output_dir)
    return Path(args.output_dir)


def _require_whole(folder: Path, verify: str) -> None:
    """Refuse to call a run finished whose model cannot be opened.

    Raises:
        ValueError: names the file, and what to remove for the run to write its end anew.
    """
    there = [folder / name for name in FINISHED if (folder / name).exists()]
    paths = dict.fromkeys([folder / "config.json", *there, *weight_files(folder)])
    for path in paths:
        thorough = verify == "full" or (path.is_file() and path.stat().st_size <= PIECE)
        fault = format_fault(path, thorough) if path.is_file() else "it is missing"
        if fault is not None:
            raise ValueError(
                f"The run in {folder} has finished, but {path} is damaged ({fault}). Remove "
                f"{', '.join(one.name for one in there)} there and give the same command again: it goes on from the "
                "newest checkpoint to the end; without a checkpoint it begins anew."
            )


def require_trained(steps: int) -> None:
    """Refuse to publish a model on which no optimizer step was made.

    Args:
        steps: number of steps of the optimizer, over all starts of the run.

    Raises:
        ValueError: if there were none.
    """
    if steps < 1:
        raise ValueError(
            "The run made no optimizer step, so there is no trained model to write; look at --max_steps, "
            "--num_train_epochs and the size of the data."
        )
