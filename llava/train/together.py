"""Flags of training that must be one of several values, or that do not go together."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from llava.common.anyres import is_anyres
from llava.common.image_opening import DEFAULT_OPENING, OPENINGS
from llava.mm_utils import ASPECT_RATIOS
from llava.model.crop_merging import MERGE_TYPES
from llava.model.liger import require_liger
from llava.model.packing import PACKING
from llava.train.manifest import VERIFY

if TYPE_CHECKING:
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

LAYERS_AGAIN = ("auto", "before_drop", "all")
"""Values of `--checkpointed_layers`, which `--activation_checkpointing` takes, too."""
LORA_FLAGS = ("lora_r", "lora_alpha", "lora_dropout", "lora_bias", "lora_target_modules")


def check_together(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Check values that are one of several, and flags that do not go with others.

    Raises:
        ValueError: for the first that is not accepted; names the flags, and what to do.
    """
    if model_args.tune_mm_mlp_adapter and args.freeze_mm_mlp_adapter:
        raise ValueError("--tune_mm_mlp_adapter trains the projector, --freeze_mm_mlp_adapter forbids it; choose one.")
    if args.lora_enable and model_args.tune_mm_mlp_adapter:
        raise ValueError("--tune_mm_mlp_adapter trains the projector alone, --lora_enable adapters too; choose one.")
    accepted: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "quant_type": (args.quant_type, ("nf4", "fp4")),
        "lora_bias": (args.lora_bias, ("none", "lora_only", "all")),
        "image_opening": (data_args.image_opening or DEFAULT_OPENING, OPENINGS),
        "mm_patch_merge_type": (model_args.mm_patch_merge_type, MERGE_TYPES),
        "mm_vision_select_feature": (model_args.mm_vision_select_feature, ("patch", "cls_patch")),
        "on_bad_sample": (data_args.on_bad_sample, ("fail", "skip")),
        "verify_checkpoint": (args.verify_checkpoint, VERIFY),
        "packing": (args.packing, PACKING),
        "checkpointed_layers": (args.checkpointed_layers, LAYERS_AGAIN),
    }
    for name, (value, values) in accepted.items():
        if value not in values:
            raise ValueError(f"--{name} is {value!r}; it must be one of {', '.join(map(str, values))}.")
    check_aspect_ratio(data_args.image_aspect_ratio, "--image_aspect_ratio is")
    if not re.fullmatch(r"linear|identity|mlp[1-9]\d*x_gelu", model_args.mm_projector_type):
        kind = model_args.mm_projector_type
        raise ValueError(f"--mm_projector_type is {kind!r}; it must be linear, identity or mlpNx_gelu.")
    _check_parts(model_args, args)
    if args.bits != 16 and not args.lora_enable:
        raise ValueError(f"--bits {args.bits} stores weights that cannot be trained; add --lora_enable True.")
    idle = [name for name in LORA_FLAGS if name in args.given]
    if idle and not args.lora_enable:
        logger.warning("--%s does nothing without --lora_enable True.", ", --".join(idle))
    if args.lora_weight_path and not args.lora_enable:
        raise ValueError("--lora_weight_path names adapters to go on from; add --lora_enable True.")
    if data_args.eval_data_path is None:
        if args.eval_strategy != "no":
            raise ValueError(f"--eval_strategy is {args.eval_strategy.value}, but there is no --eval_data_path to use.")
        if args.eval_on_start or args.do_eval:
            flag = "eval_on_start" if args.eval_on_start else "do_eval"
            raise ValueError(f"--{flag} asks for a measurement, but there is no --eval_data_path to use.")
    if args.checkpointed_layers == "before_drop" and not args.activation_checkpointing:
        raise ValueError(
            "--checkpointed_layers before_drop says which layers compute their activations again, but "
            "--activation_checkpointing is off; give --activation_checkpointing before_drop alone."
        )
    if args.save_only_model:
        logger.warning("--save_only_model: checkpoints hold weights alone, and no run can go on from them.")
    if args.max_tokens_per_device is not None and not args.average_tokens_across_devices:
        raise ValueError(
            f"--max_tokens_per_device {args.max_tokens_per_device} deals the samples of a step to devices by their "
            "length, so that the mean of each device, which --average_tokens_across_devices False asks for, would be "
            "of other samples; leave one of the two out."
        )
    _check_engine(args)


def check_aspect_ratio(value: str, said: str) -> None:
    """Raise ValueError for an `image_aspect_ratio` that nothing is known of; `said` begins the sentence."""
    if value not in ASPECT_RATIOS and not is_anyres(value):
        raise ValueError(
            f"{said} {value!r}; it must be one of {', '.join(ASPECT_RATIOS)}, anyres, or anyres_max_N with a number N."
        )


def _check_engine(args: TrainingArguments) -> None:
    """Flags that DeepSpeed's settings or the order of the data would pass over, and kernels that cannot run.

    Raises:
        ValueError: names them.
    """
    if args.train_sampling_strategy == "sequential" and args.group_by_modality_length:
        raise ValueError(
            "--group_by_modality_length orders the data, --train_sampling_strategy sequential forbids it; choose one."
        )
    if args.use_liger_kernel:
        require_liger(args.device)
    if args.torch_compile and args.packing == "on":
        raise ValueError(
            "--torch_compile makes graphs for rows of any length, but packed rows need one for each set of lengths; "
            "leave --packing on out, or --torch_compile."
        )
    if args.torch_compile:
        args.packing = "off"
    if not args.deepspeed:
        return
    settings = args.hf_deepspeed_config
    rates = [name for name in ("mm_projector_lr", "mm_vision_tower_lr") if getattr(args, name) is not None]
    if rates and settings.get_value("optimizer") is not None:
        raise ValueError(
            f"The optimizer in --deepspeed {args.deepspeed} has one learning rate, so --{rates[0]} would do nothing; "
            "take the optimizer out of that file."
        )
    if args.bits != 16 and settings.is_zero3():
        raise ValueError(
            f"--bits {args.bits} cannot be cut into ZeRO-3's pieces; give --deepspeed ./scripts/zero2.json."
        )


def _check_parts(model_args: ModelArguments, args: TrainingArguments) -> None:
    """Flags of the projector and the tower that would do nothing, or that contradict each other.

    Raises:
        ValueError: names them.
    """
    tower_rate = args.mm_vision_tower_lr is not None
    if model_args.tune_mm_mlp_adapter and (model_args.unfreeze_mm_vision_tower or tower_rate):
        flag = "--mm_vision_tower_lr" if tower_rate else "--unfreeze_mm_vision_tower"
        raise ValueError(
            f"--tune_mm_mlp_adapter trains and saves the projector alone, so {flag} cannot be honoured; choose one."
        )
    if tower_rate and "unfreeze_mm_vision_tower" in model_args.given and not model_args.unfreeze_mm_vision_tower:
        raise ValueError("--mm_vision_tower_lr trains the tower, --unfreeze_mm_vision_tower False forbids it; choose.")
    if args.mm_projector_lr is not None and args.freeze_mm_mlp_adapter:
        raise ValueError("--mm_projector_lr is a rate for what --freeze_mm_mlp_adapter does not train; choose one.")
    if tower_rate:
        model_args.unfreeze_mm_vision_tower = True
