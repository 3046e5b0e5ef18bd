"""transformers' Trainer with every load of a checkpoint looked at first, and kept to weights while it happens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from llava.model.collectives import require_everywhere
from llava.model.pickles import require_safe_pickles, weights_only_loading

# Programs that DeepSpeed copies into every checkpoint. `python -m llava.model.consolidate` does the same work, and a
# checkpoint without programs gives nobody the habit of running one that came with the data.
RECOVERY_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


class CheckedLoading(Trainer):
    """DeepSpeed reads its files without `weights_only`, so that a file could run code; under this class none can."""

    def _prepare_for_training(self, max_steps: Any, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As in transformers, which loads the engine's state here.

        Raises:
            UnsafePickleError: on every rank, if a file would run code.
        """
        if resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        require_everywhere(lambda: require_safe_pickles(resume_from_checkpoint))
        with weights_only_loading():
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

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
