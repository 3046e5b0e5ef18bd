"""transformers' Trainer with LLaVA's sampler, learning rates and checkpoints; a loss that is not finite stops it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from llava.data.dataset import LazySupervisedDataset
from llava.data.sampler import EpochSampler
from llava.model.llava_arch import load_projector
from llava.model.loading import PROJECTOR_FILE
from llava.train.arguments import TrainingArguments
from llava.train.checkpoint import adapter_weights, save_adapter

logger = logging.getLogger(__name__)


@dataclass
class SampleCounts:
    """Samples that this process trained on, and how many of them were cut or taught nothing."""

    samples: int = 0
    truncated: int = 0
    unsupervised: int = 0

    def add(self, truncated: list[bool], unsupervised: list[bool]) -> None:
        """Count one batch."""
        self.samples += len(truncated)
        self.truncated += sum(truncated)
        self.unsupervised += sum(unsupervised)


def make_sampler(dataset: LazySupervisedDataset, args: TrainingArguments) -> EpochSampler:
    """The order in which a run sees its data."""
    by_length = args.group_by_modality_length or args.train_sampling_strategy == "group_by_length"
    return EpochSampler(
        len(dataset),
        args.seed if args.data_seed is None else args.data_seed,
        batch_size=args.train_batch_size,
        world_size=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        lengths=dataset.lengths if by_length else None,
        kinds=dataset.has_image if args.group_by_modality_length else None,
    )


class LlavaTrainer(Trainer):
    """See the module's docstring.

    Args:
        adapter_only: checkpoints hold the projector instead of the whole model (pre-training).
        kwargs: of transformers' Trainer.
    """

    args: TrainingArguments
    optimizer: torch.optim.Optimizer | None

    def __init__(self, *, adapter_only: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.adapter_only = adapter_only
        self.counts = SampleCounts()
        self.sampler: EpochSampler | None = None
        self.add_callback(_EpochOfSampler(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        self.sampler = make_sampler(self.train_dataset if train_dataset is None else train_dataset, self.args)
        return self.sampler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """At least one: a step without any label must have the loss 0, not 0/0."""
        items = super()._get_num_items_in_batch(batch_samples, device)
        return items.clamp(min=1) if isinstance(items, Tensor) else items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in transformers, and stops the run on a loss that is not finite.

        Raises:
            FloatingPointError: before the gradient reaches the optimizer; names step and samples.
        """
        ids = inputs.pop("sample_ids", [])
        truncated, unsupervised = inputs.pop("truncated", []), inputs.pop("unsupervised", [])
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if model.training:
            self.counts.add(truncated, unsupervised)
            self._require_finite(loss, ids)
        return result

    def _require_finite(self, loss: Tensor, ids: list[str]) -> None:
        if not torch.isfinite(loss.detach()).all():
            raise FloatingPointError(
                f"The loss is {loss.item()} in step {self.state.global_step + 1}; the weights were not updated with "
                f"it. Samples of the batch: {', '.join(map(repr, ids))}. Lower --learning_rate, prefer --bf16 to "
                "--fp16, or look at these samples."
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with `--mm_projector_lr` for the projector's weights."""
        if self.optimizer is None and self.args.mm_projector_lr is not None:
            trained = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(self._parameter_groups(trained), **options)
        return super().create_optimizer(model)

    def _parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Trained weights by weight decay and learning rate; groups without weights are left out."""
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                groups.setdefault((name in decayed, "mm_projector" in name), []).append(weight)
        return [
            {
                "params": weights,
                "weight_decay": self.args.weight_decay if decays else 0.0,
                "lr": self.args.mm_projector_lr if of_projector else self.args.learning_rate,
            }
            for (decays, of_projector), weights in groups.items()
        ]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model: the projector alone when only that is trained. All ranks must call it."""
        if not self.adapter_only:
            super().save_model(output_dir, _internal_call)
            return
        weights = adapter_weights(self.model)
        if self.args.should_save:
            folder = self.args.output_dir if output_dir is None else output_dir
            written = save_adapter(weights, self.model.config, folder, intermediate=_internal_call)
            logger.info("Wrote the projector to %s.", written)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        adapter = Path(resume_from_checkpoint) / PROJECTOR_FILE
        if self.adapter_only and adapter.is_file():
            target: Any = self.model if model is None else model
            load_projector(target.get_model().mm_projector, str(adapter))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


class _EpochOfSampler(TrainerCallback):
    """Tells the sampler which epoch begins; a resumed run wraps it too deep for transformers to find."""

    def __init__(self, trainer: LlavaTrainer) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """`state.epoch` counts in fractions while an epoch runs."""
        if self.trainer.sampler is not None:
            self.trainer.sampler.set_epoch(int((state.epoch or 0) + 1e-6))
