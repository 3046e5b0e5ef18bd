"""transformers' Trainer that checks the files of a checkpoint before loading them and unpickles only tensors."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava.checkpoints.pickles import require_safe_pickles, weights_only_loading
from llava.model.collectives import require_everywhere
from llava.train.arguments import TrainingArguments
from llava.train.own_kernels import OwnKernels
from llava.train.soundness import STATE_FILE, damage_seen_by_all, taken_up

# Programs that DeepSpeed copies into every checkpoint; they are removed, so that a checkpoint holds no code to run.
# `python -m llava.model.consolidate` does the same work.
RECOVERY_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


class CheckedLoading(OwnKernels):
    """Loads checkpoints safely: DeepSpeed reads its files without `weights_only`, which would let them run code."""

    args: TrainingArguments

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As in transformers, which loads the engine's state here, or else optimizer and schedule.

        Raises:
            UnsafePickleError: on every rank, if a file would run code.
            ValueError: if what the files hold cannot be taken over.
        """
        if resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        require_everywhere(lambda: require_safe_pickles(resume_from_checkpoint))
        with taken_up(resume_from_checkpoint), weights_only_loading():
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As in transformers.

        Raises:
            ValueError: if what the file holds is no state of random numbers.
        """
        with contextlib.nullcontext() if checkpoint is None else taken_up(checkpoint):
            super()._load_rng_state(checkpoint)

    def _init_training_state(
        self, max_steps: Any, steps_of_an_epoch: Any, epochs: Any, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """As in transformers, which forgets a best checkpoint that does not lie where the run was when it was saved.

        Raises:
            ValueError: on every rank, if it is to be the result, and is neither in the output folder nor there.
        """
        found = super()._init_training_state(max_steps, steps_of_an_epoch, epochs, checkpoint, trial)
        if checkpoint is not None:
            require_everywhere(lambda: self._find_best(checkpoint))
        return found

    def _find_best(self, checkpoint: str) -> None:
        """Take the best checkpoint of a run in its own output folder for the one that `trainer_state.json` names."""
        named = TrainerState.load_from_json(str(Path(checkpoint) / STATE_FILE)).best_model_checkpoint
        if named is None:
            return
        own = Path(self.args.output_dir) / Path(named).name
        if own.is_dir():
            self.state.best_model_checkpoint = str(own)
        elif self.args.load_best_model_at_end and not Path(named).is_dir():
            raise ValueError(
                f"{checkpoint} says that {named} has the lowest held-out loss so far, but neither that nor {own} is "
                "there, so the run could not end with it. Copy it there, or end with the last weights: "
                "--load_best_model_at_end False."
            )

    def whole_best_checkpoint(self) -> str:
        """The checkpoint with the lowest held-out loss. All ranks must call it.

        Raises:
            ValueError: if it is damaged.
        """
        best = str(self.state.best_model_checkpoint)
        wrong = damage_seen_by_all(best, self.args.verify_checkpoint)
        if wrong:
            raise ValueError(
                f"{best}, which has the lowest held-out loss, is not whole ({'; '.join(wrong[:3])}), so the run cannot "
                "end with it. Restore it and give the same command again, or end with the last weights: "
                "--load_best_model_at_end False."
            )
        return best

    def _load_best_model(self) -> None:
        """As in transformers; the folder stands in `trainer_state.json`, and may be any.

        Raises:
            UnsafePickleError: on every rank, if a file would run code.
        """
        require_everywhere(lambda: require_safe_pickles(str(self.state.best_model_checkpoint)))
        with weights_only_loading():
            super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers, without the programs that DeepSpeed adds."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            written = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            for name in RECOVERY_SCRIPTS:
                (written / name).unlink(missing_ok=True)
