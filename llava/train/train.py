"""One training phase, from the command line to the saved model.

Pre-training is `--tune_mm_mlp_adapter True --version plain`; fine-tuning is `--version v1` with
`--pretrain_mm_mlp_adapter` pointing at what pre-training left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import set_seed

from llava.data.measure import measure
from llava.train.arguments import TrainingArguments, parse_arguments
from llava.train.building import choose_trained, load_model, load_tokenizer, make_data
from llava.train.checkpoint import remove_checkpoints, require_same_compression, starting_point
from llava.train.report import log_start, write_summary
from llava.train.trainer import LlavaTrainer, SampleCounts, make_sampler

logger = logging.getLogger(__name__)


def train(argv: Sequence[str] | None = None) -> Path:
    """Run one phase and return its output folder.

    Args:
        argv: flags; None takes them from the command line.

    Raises:
        ValueError: if flags, data and model do not fit each other.
        FloatingPointError: if the loss stops being finite.
    """
    model_args, data_args, training_args = parse_arguments(argv)
    _prepare_process(training_args)
    overwrite = training_args.overwrite_output_dir
    checkpoint = starting_point(training_args.output_dir, overwrite, training_args.resume_from_checkpoint)

    tokenizer = load_tokenizer(model_args, training_args)
    model = load_model(model_args, data_args, training_args, tokenizer)
    if checkpoint is not None:
        require_same_compression(checkpoint, model.compression)
    choose_trained(model, model_args, training_args)
    dataset, collator = make_data(model, tokenizer, model_args, data_args)

    order = make_sampler(dataset, training_args).order()
    statistics = measure(dataset, order, training_args.train_batch_size)
    log_start(model, statistics)
    statistics.require_supervision()

    trainer = LlavaTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        data_collator=collator,
        processing_class=tokenizer,
        adapter_only=model_args.tune_mm_mlp_adapter,
    )
    if checkpoint is not None:
        logger.info("Resuming from %s.", checkpoint)
    elif overwrite and trainer.is_world_process_zero():
        remove_checkpoints(training_args.output_dir)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    trainer.save_state()
    trainer.save_model()
    counts = _over_all_ranks(trainer)
    if trainer.is_world_process_zero():
        phase = "pretrain" if model_args.tune_mm_mlp_adapter else "finetune"
        history = trainer.state.log_history
        summary = write_summary(training_args.output_dir, phase, model, statistics, history, asdict(counts))
        logger.info("Wrote model and %s to %s.", summary.name, summary.parent)
    return Path(training_args.output_dir)


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
        import deepspeed

        # Without this ZeRO-3 on CPU partitions weights for a world of one while loading them.
        deepspeed.init_distributed(dist_backend="gloo" if args.use_cpu else None)
    set_seed(args.seed)


def _over_all_ranks(trainer: LlavaTrainer) -> SampleCounts:
    own = torch.tensor(list(asdict(trainer.counts).values()), device=trainer.args.device)
    total = trainer.accelerator.reduce(own, reduction="sum")
    return SampleCounts(*total.tolist())
