"""Callbacks of the trainer: a trial save before the first step, and the epoch for the sampler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from llava.train.trainer import LlavaTrainer


class CheckSaving(TrainerCallback):
    """Saves once before the first step of a new run, so that a save that cannot work fails at once."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Try the save; a resumed run is left out, because it has read a checkpoint of its own already."""
        if state.global_step == 0:
            self.trainer.check_saving()


class EpochOfSampler(TrainerCallback):
    """Tells the sampler which epoch begins; a resumed run wraps it too deep for transformers to find."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass the epoch on as a whole number; `state.epoch` is fractional while an epoch runs."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
