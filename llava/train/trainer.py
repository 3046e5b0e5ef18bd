"""transformers' Trainer with LLaVA's sampler and learning rates, and checkpoints that are published in one step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.checkpoints.fit import read_weights, shapes_in_model
from llava.checkpoints.lora import load_adapters, save_lora, trained_state
from llava.common.atomic_write import library_write_errors
from llava.common.child_processes import leave_signals_to_parent
from llava.cost.hardware import device_peak
from llava.cost.workload import Workload
from llava.data.dataset import LazySupervisedDataset
from llava.data.sampler import EpochSampler
from llava.model.collectives import of_all_ranks, whole_shape
from llava.model.compressed_model import CompressedModel
from llava.model.weights import PROJECTOR_FILE, load_projectors
from llava.train.adapters import compute_dtype
from llava.train.arguments import TrainingArguments
from llava.train.callbacks import EpochOfSampler
from llava.train.checkpoint import (
    STAGING,
    adapter_weights,
    clear_staging,
    prune_checkpoints,
    publish_checkpoint,
    publish_model,
    save_adapter,
)
from llava.train.checkpointing import checkpoint_before_drop
from llava.train.early_check import expected_weights, require_opens, require_resumable, require_room, require_whole
from llava.train.facts import RunFacts, has_optimizer, require_steps, say_what_changed
from llava.train.filled_steps import SPARE, FilledSteps
from llava.train.finished import require_trained
from llava.train.finite_steps import FiniteSteps
from llava.train.manifest import MANIFEST_FILE, seal
from llava.train.meter import TrainingMeter
from llava.train.non_finite import require_finite_weights
from llava.train.rates import apply_rates, asked_rates, parameter_groups
from llava.train.skipped import SampleCounts, SkippedSamples
from llava.train.soundness import taken_up
from llava.train.supported import require_own_loss
from llava.train.validation import held_out_loader, held_out_loss


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


class LlavaTrainer(FilledSteps):
    """Trainer of LLaVA: its sampler, learning rates, metrics, validation and checkpoints.

    Args:
        part: what checkpoints hold: the whole `model`, the projector (`adapter_only`, pre-training), or `lora`
            adapters with what else was trained.
        facts: facts of the run, left in every checkpoint; None leaves none.
        skipped: takes note of samples that could not be read.
        kwargs: arguments of transformers' Trainer.
    """

    args: TrainingArguments
    optimizer: torch.optim.Optimizer | None
    control: Any

    def __init__(
        self,
        *,
        part: str = "model",
        facts: RunFacts | None = None,
        skipped: SkippedSamples | None = None,
        **kwargs: Any,
    ) -> None:
        require_own_loss(kwargs, kwargs["args"])
        super().__init__(**kwargs)
        self.accelerator.dataloader_config.non_blocking = self.args.dataloader_pin_memory
        # Some classes of transformers say no, as their own losses are means of a batch; here every family's is a sum
        # over the labels of the step, divided by how many they are on all ranks.
        self.model_accepts_loss_kwargs = True
        self.part = part
        self.facts = facts
        self.skipped = skipped
        self.counts = SampleCounts()
        peak = device_peak(self.args.device, compute_dtype(self.args), self.args.peak_tflops)
        workload = Workload.of(self.model, self.args.activation_checkpointing, self.args.checkpointed_layers)
        self.meter = TrainingMeter(workload, self.args.device, peak)
        self.sampler: EpochSampler | None = None
        self._staging: Path | None = None
        self._steps = FiniteSteps(self.model, self._resumable)
        self._asked_rates: list[tuple[float, float]] = []
        self.add_callback(EpochOfSampler(self))

    # === Data ===

    def get_train_dataloader(self) -> Any:
        """As in transformers; the workers leave it to the main process to react to a signal to stop."""
        loader = super().get_train_dataloader()
        leave_signals_to_parent(getattr(loader, "base_dataloader", loader))
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy == "sequential":
            return super()._get_train_sampler(train_dataset)
        self.sampler = make_sampler(self.train_dataset if train_dataset is None else train_dataset, self.recipe)
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As in transformers; takes note of what was computed, without waiting for it."""
        ids = inputs.pop("sample_ids", [])
        truncated, unsupervised = inputs.pop("truncated", []), inputs.pop("unsupervised", [])
        problems = inputs.pop("problems", [])
        work, is_spare = inputs.pop("tower_tokens", None), inputs.pop(SPARE, False)
        inputs |= {"output_layouts": True, "packing": self.recipe.packing}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training and not is_spare:
            self.meter.add(outputs.layouts, len(inputs.get("images", ())), work)
            self.counts.add(truncated, unsupervised, problems)
            if self.skipped is not None:
                self.skipped.add(ids, problems)
            self._steps.add_loss(loss, ids)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers, before every optimizer step; raises FloatingPointError as `FiniteSteps.end_step` does."""
        norm = super()._get_grad_norm(model, grad_norm)
        scaler = self.accelerator.scaler
        scaled = scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        scale = None if scaler is None else scaler.get_scale()
        self._steps.end_step(norm, self.state.global_step + 1, scaled, scale)
        return norm

    def _prepare_for_training(self, *arguments: Any) -> Any:
        """As in transformers; layers behind the first drop keep their activations where that is asked for."""
        prepared = super()._prepare_for_training(*arguments)
        if self.args.checkpointed_layers == "before_drop":
            checkpoint_before_drop(self.model)
        return prepared

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        """As in transformers, which would take one step too many from a checkpoint that is at the end already."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **options)
        else:
            self.control.should_training_stop = True

    # === Metrics ===

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """As in transformers; the time it takes counts as waiting for data."""
        return super().get_batch_samples(self.meter.fetched(epoch_iterator), num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in transformers; what a training step did and how fast stands beside its loss. All ranks call it.

        Raises:
            FloatingPointError: if a loss or the gradient of the last step is not finite.
        """
        self._steps.look()
        if "loss" in logs:
            logs |= self.meter.snapshot()
        super().log(logs, start_time)

    def totals(self) -> dict[str, Any]:
        """Metrics and counts of the whole run since it was started or resumed. All ranks must call it."""
        ranks = [asdict(counts) for counts in of_all_ranks([self.counts])]
        return self.meter.totals() | {"counts": {name: sum(counts[name] for counts in ranks) for name in ranks[0]}}

    # === Learning rates ===

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in transformers, with a learning rate of their own for projector and tower where one is given."""
        if self.optimizer is None and (self.args.mm_projector_lr, self.args.mm_vision_tower_lr) != (None, None):
            trained = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            groups = parameter_groups(trained, self.args, set(self.get_decay_parameter_names(trained)))
            self.optimizer = optimizer_class(groups, **options)
        optimizer = super().create_optimizer(model)
        self._asked_rates = asked_rates(optimizer, self.args)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """As in transformers; the rates that this start asks for take the place of the checkpoint's."""
        if checkpoint is not None and self.facts is not None:
            say_what_changed(checkpoint, self.facts)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            apply_rates(self.optimizer, self.lr_scheduler, self._asked_rates)

    # === Validation ===

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Mean loss of an answer token of held-out data; logged, and handed to callbacks as transformers does."""
        self._steps.look()
        held_out = self.eval_dataset if eval_dataset is None else eval_dataset
        args = self.args
        loader = held_out_loader(
            held_out,
            self.data_collator,
            args.eval_batch_size,
            args.process_index,
            args.world_size,
            args.dataloader_num_workers,
        )
        model = self.model_wrapped if self.is_deepspeed_enabled else self.model
        with self.meter.paused():
            result = held_out_loss(model, loader, self._prepare_inputs, self._sum_over_ranks)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(args, self.state, self.control, metrics)
        return metrics

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        device = self.args.device
        kind = torch.float32 if device.type == "mps" else torch.float64
        return self.accelerator.reduce(values.to(device, kind), reduction="sum").cpu()

    # === Checkpoints ===

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    @contextlib.contextmanager
    def staged(self) -> Iterator[Path]:
        """A folder to write in that nobody takes for a result; the rank that saves empties it before and after.

        All ranks must enter it.
        """
        folder = Path(self.args.output_dir) / STAGING
        if self.args.should_save:
            clear_staging(self.args.output_dir)
            folder.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._staging = folder
        try:
            with library_write_errors(folder):
                yield folder
        finally:
            self._staging = None
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            clear_staging(self.args.output_dir)

    def _resumable(self) -> bool:
        try:
            return any(has_optimizer(folder) for folder in Path(self.args.output_dir).glob("checkpoint-*"))
        except OSError:  # only a sentence depends on it
            return False

    def _write_checkpoint(self, staging: Path, trial: Any = None) -> Path:
        """Write all that resuming needs into the staging folder; whole when this returns, at every rank."""
        super()._save_checkpoint(self.model, trial)
        written = staging / f"checkpoint-{self.state.global_step}"
        self.accelerator.wait_for_everyone()
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / written.name)
            if self.args.should_save:
                self.state.save_to_json(str(written / "trainer_state.json"))
        if self.facts is not None and self.args.should_save:
            self.facts.write(written)
        return written

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As in transformers, but a checkpoint gets its name only when it was written whole, and read back.

        Raises:
            FloatingPointError: if the last loss or gradient, a weight or the optimizer's state is not finite; older
                checkpoints stay.
        """
        self._steps.look()
        require_finite_weights(self.model, self.optimizer, self.state.global_step, self._resumable())
        with self.meter.paused(), self.staged() as staging:
            written = self._write_checkpoint(staging, trial)
            if self.args.should_save:
                seal(written)
                publish_checkpoint(written, Path(self.args.output_dir) / written.name)
        if self.args.should_save:
            newest = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            best = self.state.best_model_checkpoint
            prune_checkpoints(self.args.output_dir, self.args.save_total_limit, newest, best)

    def check_saving(self) -> None:
        """Save everything once, read it back, see whether there is room for more, and remove it; nothing is trained.

        Raises:
            OSError: if what was written is not whole, or checkpoints will not fit on the disk.
        """
        expected = expected_weights(self.model, self.part)
        with self.staged() as staging:
            written = self._write_checkpoint(staging)
            if self.args.should_save:
                size = seal(written)
                require_whole(written, expected, self._shapes_here)
                require_resumable(written)
                require_opens(written, None if self.part == "model" else self.model.config.name_or_path, self.args)
                trained = sum(math.prod(whole_shape(p)) for p in self.model.parameters() if p.requires_grad)
                require_room(staging, size, trained, self.is_deepspeed_enabled, self.args.save_total_limit)

    def _shapes_here(self, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes that weights of a checkpoint get in the model that is trained."""
        if self.part == "model" and isinstance(self.model, CompressedModel):
            return shapes_in_model(self.model, shapes)
        return shapes

    def save_final(self, write_report: Callable[[Path], object] | None = None) -> None:
        """Write the trained model to the output folder, file by file only once all of them are whole.

        Args:
            write_report: puts more files into the folder that it is given; called by the rank that saves.

        Raises:
            ValueError: if no optimizer step was made.
            FloatingPointError: if the last loss or gradient or a weight is not finite.
        """
        self._steps.look()
        require_trained(self.state.global_step)
        require_finite_weights(self.model, None, self.state.global_step, self._resumable())
        with self.staged() as staging:
            self.save_model(str(staging / "final"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                if write_report is not None:
                    write_report(staging / "final")
                seal(staging / "final")
                (staging / "final" / MANIFEST_FILE).unlink()
                publish_model(staging / "final", Path(self.args.output_dir))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, or the part of it that is trained. All ranks must call it."""
        folder = self.args.output_dir if output_dir is None else output_dir
        if self.part == "model":
            super().save_model(folder, _internal_call)
            return
        weights = adapter_weights(self.model) if self.part == "adapter_only" else trained_state(self.model)
        if self.args.should_save:
            if self.part == "adapter_only":
                save_adapter(weights, self.model.config, folder)
            else:
                save_lora(self.model, weights, folder)
                self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target: Any = self.model if model is None else model
        with taken_up(resume_from_checkpoint):
            if self.part == "adapter_only":
                load_projectors(target, Path(resume_from_checkpoint) / PROJECTOR_FILE)
            elif self.part == "lora":
                load_adapters(target, resume_from_checkpoint)
            elif isinstance(target, CompressedModel):  # its files have published names, which transformers skips
                read_weights(target, Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _init_training_state(
        self, max_steps: Any, steps_of_an_epoch: Any, epochs: Any, checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        """As in transformers.

        Raises:
            ValueError: if the checkpoint is beyond the end that this start asks for.
        """
        found = super()._init_training_state(max_steps, steps_of_an_epoch, epochs, checkpoint, trial)
        if checkpoint is not None:
            require_steps(checkpoint, self.state.global_step, self.state.max_steps)
        return found

    def _load_best_model(self) -> None:
        best = self.whole_best_checkpoint()
        of_transformers = self.part == "model" and not isinstance(self.model, CompressedModel)
        if of_transformers or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(best)
