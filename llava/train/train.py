"""One training phase, from the command line to the saved model.

Pre-training is `--tune_mm_mlp_adapter True --version plain`; fine-tuning is `--version v1` with
`--pretrain_mm_mlp_adapter` pointing at what pre-training left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import set_seed

from llava.data.statistics import DataStatistics, measure
from llava.train.adapters import add_lora
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from llava.train.build_locks import warn_of_build_locks
from llava.train.building import choose_trained, load, make_data, make_held_out
from llava.train.callbacks import CheckSaving
from llava.train.checkpoint import remove_checkpoints, starting_point
from llava.train.checkpointing import settle_checkpointing
from llava.train.facts import RunFacts, describe_run, require_optimizer, require_same_run
from llava.train.finished import finished_run, require_finished
from llava.train.meter import summary_table
from llava.train.one_run import only_run
from llava.train.own_inputs import require_inputs_kept
from llava.train.preemption import PREEMPTED_FILE, StopOnSignal
from llava.train.run_summary import SUMMARY_FILE, log_start, write_summary
from llava.train.skipped import SkippedSamples
from llava.train.trainer import LlavaTrainer, make_sampler

logger = logging.getLogger(__name__)


def train(argv: Sequence[str] | None = None) -> Path:
    """Run one phase and return its output folder.

    Args:
        argv: flags; None takes them from the command line.

    Raises:
        ValueError: if flags, data and model do not fit each other, or another run holds the output folder.
        FloatingPointError: if the loss stops being finite.
    """
    model_args, data_args, training_args = parse_arguments(argv)
    _prepare_process(training_args)
    with only_run(training_args):
        return _train(model_args, data_args, training_args)


def _train(model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments) -> Path:
    overwrite = training_args.overwrite_output_dir
    finished = finished_run(training_args)
    checkpoint = None
    if finished is None:
        checkpoint = starting_point(
            training_args.output_dir, overwrite, training_args.resume_from_checkpoint, training_args.verify_checkpoint
        )

    require_inputs_kept(model_args, data_args, training_args)
    model, tokenizer, processor = load(model_args, data_args, training_args)
    choose_trained(model, model_args, training_args)
    length = training_args.model_max_length if data_args.tokenizer_model_max_length else None
    dataset, collator = make_data(model, tokenizer, model_args, data_args, processor, length, training_args.packing)
    held_out = make_held_out(dataset, data_args)
    settle_checkpointing(model, dataset, training_args, finished or (RunFacts.read(checkpoint) if checkpoint else None))
    part = "lora" if training_args.lora_enable else "adapter_only" if model_args.tune_mm_mlp_adapter else "model"
    facts = describe_run(model, dataset, model_args, data_args, training_args, part, held_out)
    if finished is not None:
        return require_finished(finished, facts, training_args)
    if checkpoint is not None:
        require_optimizer(checkpoint)
        require_same_run(checkpoint, facts)
    statistics = measure(dataset, make_sampler(dataset, training_args).order(), training_args.train_batch_size)
    if part == "lora":
        model = add_lora(model, training_args)
    logger.info("Data: %s", dataset.describe())
    log_start(model, statistics)
    statistics.require_supervision()

    trainer = LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        eval_dataset=held_out,
        data_collator=collator,
        processing_class=tokenizer if processor is None else processor,
        part=part,
        facts=facts,
        skipped=SkippedSamples(
            training_args.output_dir, training_args.process_index, len(dataset), data_args.max_bad_share
        ),
    )
    if checkpoint is not None:
        logger.info("Resuming from %s.", checkpoint)
    elif overwrite and trainer.is_world_process_zero():
        remove_checkpoints(training_args.output_dir)
    run(trainer, checkpoint)
    finish(trainer, statistics)
    return Path(training_args.output_dir)


def run(trainer: LlavaTrainer, checkpoint: Path | None) -> None:
    """Train from the beginning or from a checkpoint.

    Raises:
        PreemptedError: if a signal asked to stop; everything is saved.
        FloatingPointError: if the loss stops being finite.
    """
    args = trainer.args
    stop = StopOnSignal()
    trainer.add_callback(stop)
    if args.early_save_check:
        trainer.add_callback(CheckSaving(trainer))
    if args.should_save:
        (Path(args.output_dir) / PREEMPTED_FILE).unlink(missing_ok=True)
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.meter.stop()
    if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
        stop.leave(args.output_dir, trainer.state.global_step, args.should_save)


def finish(trainer: LlavaTrainer, statistics: DataStatistics) -> None:
    """Evaluate, write the model, and leave the summary."""
    args = trainer.args
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    trainer.save_state()
    totals = trainer.totals()

    def write_report(folder: Path) -> None:
        phase = "pretrain" if trainer.part == "adapter_only" else "finetune"
        facts = None if trainer.facts is None else asdict(trainer.facts)
        write_summary(folder, phase, trainer.model, statistics, trainer.state.log_history, totals, facts)

    trainer.save_final(write_report)
    if trainer.is_world_process_zero():
        logger.info("What the run did:\n%s", summary_table(totals))
        logger.info("Wrote model and %s to %s.", SUMMARY_FILE, args.output_dir)


def _prepare_process(args: TrainingArguments) -> None:
    """Logging, seed and process group, before anything is loaded."""
    level = logging.INFO if args.process_index == 0 else logging.WARNING
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("llava").setLevel(level)
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process; start one process a GPU with torchrun or deepspeed, "
            "or choose a GPU with CUDA_VISIBLE_DEVICES."
        )
    if args.deepspeed:
        if args.process_index == 0:
            warn_of_build_locks()
        import deepspeed

        # Without this ZeRO-3 on CPU partitions weights for a world of one while loading them.
        deepspeed.init_distributed(dist_backend="gloo" if args.use_cpu else None)
    set_seed(args.seed)
