"""The Trainer with micro-batches that are filled by tokens instead of rows (`--max_tokens_per_device`).

To transformers' loop an optimizer step is one batch then, so that its counts of steps and epochs, its schedule and its
resuming hold without change. The batch is a list of micro-batches, made in a worker from the samples of this rank, and
`training_step` runs one after the other. Gradients are reduced with the last one: under DDP by `no_sync` around the
others; DeepSpeed is told at every backward pass, by accelerate, whether it is the last of its step, and does not divide
by a number of passes, as the loss is a sum over all labels of the step already.

All ranks make as many passes in every step, as ZeRO-3 gathers weights in each: a rank with fewer micro-batches than
another runs its shortest sample again without labels, whose gradient is zero.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from llava.data.micro_batches import DecoderLength, Step, StepCollator
from llava.data.step_sampler import StepSampler
from llava.model.collectives import LargestOfRanks
from llava.model.host_inputs import to_device
from llava.model.packing import packing_of_call
from llava.train.arguments import TrainingArguments
from llava.train.checked_loading import CheckedLoading

logger = logging.getLogger(__name__)

SPARE = "spare"
"""Entry of a micro-batch that only keeps a rank in step with the others."""


class FilledSteps(CheckedLoading):
    """Fills micro-batches by tokens where `--max_tokens_per_device` is given; else the Trainer as it is.

    Attributes:
        recipe: the arguments as they were given; `args` says one batch a step where batches are filled by tokens.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.recipe: TrainingArguments = kwargs["args"]
        self.fills = self.recipe.max_tokens_per_device is not None
        if self.fills:
            kwargs["args"] = one_batch_a_step(self.recipe)
        self._largest = LargestOfRanks(self.recipe.ddp_timeout)
        self._said_long = False
        super().__init__(**kwargs)

    # === Data ===

    def get_train_dataloader(self) -> Any:
        """As in transformers; a batch is what `StepCollator` makes where batches are filled by tokens."""
        if not self.fills:
            return super().get_train_dataloader()
        args, dataset = self.recipe, self.train_dataset
        sampler = StepSampler(
            self._get_train_sampler(dataset),
            args.train_batch_size,
            args.gradient_accumulation_steps,
            args.world_size,
            args.process_index,
            dataset.lengths,
            args.dataloader_drop_last,
        )
        workers = args.dataloader_num_workers
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=self.step_collator(),
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            # Steps are larger than batches: one ahead for each worker keeps memory within bounds.
            prefetch_factor=(args.dataloader_prefetch_factor or 1) if workers else None,
            worker_init_fn=functools.partial(seed_worker, num_workers=workers, rank=args.process_index),
        )

    def step_collator(self) -> StepCollator:
        """What cuts the samples of a step."""
        dataset, most = self.train_dataset, self.recipe.max_tokens_per_device
        assert most is not None
        length = DecoderLength(dataset.inputs, dataset.config.settings, self.model.compression.v2v)
        return StepCollator(self.data_collator, length, most, self.packs(), spare=self.recipe.world_size > 1)

    def packs(self) -> bool:
        """Whether the rows of a micro-batch stand end to end in the decoder."""
        return packing_of_call(self.recipe.packing, self.model.decoder.config, True, False) != "off"

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As in transformers; then every rank has as many micro-batches. All ranks must call it."""
        steps, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return [self._evened(step) for step in steps] if self.fills else steps, items

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """As in transformers; at least one: a step without any label must have the loss 0, not 0/0."""
        batches = batch_samples
        if self.fills:  # labels are still on the host; where the device counts them, the number is not waited for
            parts = [batch for step in batch_samples for batch in step["batches"]]
            batches = [{"labels": to_device(part["labels"], device)} for part in parts]
        items = super()._get_num_items_in_batch(batches, device)
        return items.clamp(min=1) if isinstance(items, Tensor) else items

    def _evened(self, step: Step) -> Step:
        """A step with as many micro-batches as the rank with the most has."""
        if step["long"] and not self._said_long:
            self._said_long = True
            name, length = step["long"][0]
            logger.warning(
                "Sample %r has %d tokens in the decoder, more than --max_tokens_per_device %d: it, and every other one "
                "that is longer, has a micro-batch of its own. Give a larger number, or cut samples with "
                "--model_max_length, if memory does not suffice.",
                name,
                length,
                self.recipe.max_tokens_per_device,
            )
        batches = list(step["batches"])
        missing = self._largest.of(len(batches)) - len(batches)
        return {"batches": batches + [step["spare"] | {SPARE: True}] * missing if missing else batches}

    # === A step ===

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """As in transformers; of a filled step all micro-batches, and the sum of their losses."""
        if not self.fills:
            return super().training_step(model, inputs, num_items_in_batch)
        batches, state = inputs["batches"], self.accelerator.gradient_state
        under_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        total: Tensor | None = None
        for number, batch in enumerate(batches, 1):
            is_last = number == len(batches)
            state._set_sync_gradients(is_last)
            apart = contextlib.nullcontext() if is_last or under_deepspeed else self.accelerator.no_sync(model=model)
            with apart:
                loss = super().training_step(model, batch, num_items_in_batch)
            total = loss if total is None else total + loss
        assert total is not None  # a rank has at least one sample of every step
        return total

    def _prepare_input(self, data: Any) -> Any:
        """As in transformers; the copy is not waited for, and page-locked memory lets it run meanwhile."""
        if isinstance(data, Tensor):
            data = to_device(data, self.args.device)
        return super()._prepare_input(data)

    def floating_point_ops(self, inputs: Any) -> Any:
        """As in transformers; of a filled step all micro-batches."""
        if self.fills and isinstance(inputs, Mapping) and "batches" in inputs:
            return sum(super(FilledSteps, self).floating_point_ops(batch) for batch in inputs["batches"])
        return super().floating_point_ops(inputs)


def one_batch_a_step(args: TrainingArguments) -> TrainingArguments:
    """The same arguments for a loop in which all samples of one rank in an optimizer step are one batch."""
    changed = copy.copy(args)
    changed.per_device_train_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    changed.gradient_accumulation_steps = 1
    return changed
