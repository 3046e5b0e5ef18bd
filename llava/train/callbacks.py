"""What a training does beside its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from llava.train.trainer import LlavaTrainer


class CheckSaving(TrainerCallback):
    """Tries a save before the first step of a run that begins."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed run has a checkpoint that was read already."""
        if state.global_step == 0:
            self.trainer.check_saving()


class EpochOfSampler(TrainerCallback):
    """Tells the sampler which epoch begins; a resumed run wraps it too deep for transformers to find."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.epoch` counts in fractions while an epoch runs."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
