"""Which of transformers' `TrainingArguments` a run honours, which it refuses, and which change nothing here.

Every field of the tested transformers release stands in exactly one of the tables; a test fails when one is missing, so
that a new release is read before it is used. Fields of the first table were tried in a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import transformers

# What the fields are about -> their names.
_HONOURED: dict[str, str] = {
    "length, rate and size of the steps": (
        "output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type "
        "lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon gradient_accumulation_steps "
        "average_tokens_across_devices max_grad_norm seed data_seed full_determinism optim_args"
    ),
    "precision, memory and devices": (
        "bf16 fp16 tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
        "gradient_checkpointing_kwargs torch_empty_cache_steps use_cpu deepspeed ddp_find_unused_parameters "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend ddp_timeout"
    ),
    "logging": (
        "logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm "
        "report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id"
    ),
    "evaluation and checkpoints": (
        "eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size do_eval save_strategy save_steps "
        "save_total_limit load_best_model_at_end greater_is_better save_only_model resume_from_checkpoint"
    ),
    "data loading": (
        "dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context"
    ),
}
HONOURED = frozenset(name for names in _HONOURED.values() for name in names.split())

_OPTIMIZER_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
    "ademamix": ("beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"),
}
_OPTIMIZER_ARGUMENTS |= dict.fromkeys(
    ("ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"), _OPTIMIZER_ARGUMENTS["ademamix"]
)
# Fields of which some values are honoured: those, and what is wrong with the others.
SOME_VALUES: dict[str, tuple[str, str]] = {
    "optim": (
        "adamw_torch adamw_torch_fused adafactor sgd adagrad rmsprop ademamix adamw_bnb_8bit adamw_8bit "
        "paged_adamw_32bit paged_adamw_8bit lion_32bit lion_8bit paged_lion_32bit paged_lion_8bit rmsprop_bnb "
        "rmsprop_bnb_8bit rmsprop_bnb_32bit ademamix_8bit paged_ademamix_32bit paged_ademamix_8bit",
        "the others need packages that are not among those tested here, or steps of their own",
    ),
    "train_sampling_strategy": ("random sequential group_by_length", "batches are made by this program's own sampler"),
    "metric_for_best_model": ("loss eval_loss", "the held-out loss is the only metric that is measured"),
}

# Why a run cannot honour fields -> their names.
_REFUSED: dict[str, str] = {
    "transformers smooths logits of every position, and visual ones are dropped between": "label_smoothing_factor",
    "optimizers that choose their weights by name are not supported": "optim_target_modules",
    "held-out loss is measured in the precision of the training": "bf16_full_eval fp16_full_eval",
    "the length of a sequence changes between layers": "torch_compile torch_compile_backend torch_compile_mode",
    "its kernels replace the forward that drops visual tokens": "use_liger_kernel liger_kernel_config",
    "its noise is scaled by the length of the text before images are put into it": "neftune_noise_alpha",
    "the order of the data, and with it resuming, depends on the batch size": "auto_find_batch_size",
    "input_ids hold one mark for each image; the run reports tokens_per_second itself": "include_num_input_tokens_seen",
    "held-out data gives a loss and no predictions": (
        "eval_do_concat_batches eval_use_gather_object include_for_metrics batch_eval_metrics"
    ),
    "the collator names the labels": "label_names",
    "this program trains; python -m llava.eval.run answers benchmarks": "do_predict",
    "checkpoints go to one folder that all machines see": "save_on_each_node",
    "a run that is told to stop saves by itself": "enable_jit_checkpoint",
    "upload the finished folder with `hf upload`": "push_to_hub",
    "nothing is uploaded": "hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision",
    "a resumed run sees each sample as often as the uninterrupted one": "ignore_data_skip",
    "no callback here keeps a state": "restore_callback_states_from_checkpoint",
    "batches are made by this program's own sampler": "accelerator_config",
    "only data parallelism and ZeRO are supported": "parallelism_config",
    "weights are shared out by DeepSpeed's ZeRO; give --deepspeed": "fsdp fsdp_config",
    "the order of the data would depend on how fast workers are": "dataloader_in_order",
    "the collator makes the model's inputs, and its columns are not arguments of forward": "remove_unused_columns",
    "a loss that is not finite stops the run": "logging_nan_inf_filter",
    "lengths come from the prepared data": "length_column_name",
    "which weights take part may change from batch to batch": "ddp_static_graph",
    "the run itself stops at the first loss that is not finite": "debug",
    "the run reports peak_memory_gib itself": "skip_memory_metrics",
}
REFUSED: dict[str, str] = {name: reason for reason, names in _REFUSED.items() for name in names.split()}
# Field -> why it has no effect here, whatever its value.
WITHOUT_EFFECT_HERE: dict[str, str] = {
    "do_train": "training is what this program does",
    "prediction_loss_only": "held-out data gives the loss alone in any case",
    "eval_accumulation_steps": "no predictions are kept that would fill memory",
    "use_cache": "training keeps no cache; generation decides for itself",
    "local_rank": "launchers set it; the environment is read instead",
}


_NOTHING = ("", "none", "null", "[]", "{}")


def support_of(field: str) -> str:
    """What becomes of a field: `honoured`, `some values`, `refused` or `no effect`.

    Raises:
        KeyError: if it stands in no table.
    """
    tables: Mapping[str, Any] = {
        "honoured": HONOURED,
        "some values": SOME_VALUES,
        "refused": REFUSED,
        "no effect": WITHOUT_EFFECT_HERE,
    }
    for name, table in tables.items():
        if field in table:
            return name
    raise KeyError(f"transformers' TrainingArguments.{field} stands in no table of llava/train/supported.py.")


def require_supported(said: Mapping[str, Any]) -> None:
    """Check the flags of a command line against the tables, before anything is made from them.

    Args:
        said: values of transformers' arguments by name, as far as they were given; others are passed over.

    Raises:
        ValueError: if one asks for something that a run cannot do; says why, and what is accepted.
    """
    own = {field.name: field for field in dataclasses.fields(transformers.TrainingArguments)}
    for name, value in said.items():
        if name in REFUSED and name in own and not _asks_nothing(value, own[name]):
            raise ValueError(f"--{name} {value} cannot be honoured: {REFUSED[name]}. Leave it out.")
        if name in SOME_VALUES:
            accepted, why = SOME_VALUES[name]
            if str(value) not in accepted.split():
                raise ValueError(f"--{name} is {value!r}; accepted are {', '.join(accepted.split())}: {why}.")
    _require_optimizer_arguments(said.get("optim_args"), str(said.get("optim", "adamw_torch_fused")))


def is_left_out(name: str, values: Sequence[str]) -> bool:
    """Whether a flag of what is refused asks for nothing in a word that its own type could not hold, such as `None`."""
    return name in REFUSED and [value.lower() for value in values] in (*([word] for word in _NOTHING),)


# Fields that this program sets itself to something else than transformers' default.
_OURS: dict[str, Any] = {"remove_unused_columns": False, "logging_nan_inf_filter": False}


def _asks_nothing(value: Any, field: dataclasses.Field[Any]) -> bool:
    """Whether a value is the one that a run has anyway."""
    if field.name in _OURS:
        return bool(value == _OURS[field.name])
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value == default or value in (None, "", [], {}):
        return True
    if isinstance(default, bool):
        return False
    return value is False or str(value).lower() in ("none", "false", "no", "0", "0.0", "[]", "{}")


def _require_optimizer_arguments(text: str | None, optimizer: str) -> None:
    """transformers passes over arguments that an optimizer does not have."""
    if not text:
        return
    accepted = _OPTIMIZER_ARGUMENTS.get(optimizer, ())
    for pair in text.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if name not in accepted or not (equals and value):
            raise ValueError(
                f"--optim_args holds {pair!r}, which {optimizer} does not have; "
                + (f"accepted are {', '.join(accepted)}, as name=value." if accepted else "it has none; leave it out.")
            )


def require_own_loss(options: Mapping[str, Any], args: transformers.TrainingArguments) -> None:
    """Check what a program hands to the trainer itself.

    Args:
        options: options of transformers' Trainer.
        args: arguments of the run.

    Raises:
        ValueError: if an option would be passed over, or would see logits that are not those of the labels.
    """
    for name in ("compute_metrics", "preprocess_logits_for_metrics", "compute_loss_func", "model_init"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} cannot be honoured: the loss is computed behind the last drop of visual tokens, and held-out "
                "data gives that loss and no logits. Leave it out, and measure answers with python -m llava.eval.run."
            )
    require_supported({name: getattr(args, name) for name in ("label_smoothing_factor", "neftune_noise_alpha")})
