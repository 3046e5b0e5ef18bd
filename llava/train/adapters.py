"""LoRA and QLoRA: low-rank adapters are trained on a frozen language model whose weights are in 16, 8 or 4 bits."""

from __future__ import annotations

import logging
import os
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from llava.checkpoints.lora import ADAPTED, ADAPTER_CONFIG_FILE, adapted_by, load_adapters, lora_targets
from llava.model.experts import experts_of
from llava.model.parts import projector_weights
from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)

_RECORDED = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_bias": "bias", "lora_dropout": "lora_dropout"}
# Fields of peft's LoraConfig that are settled otherwise, or change nothing of adapters that are trained already; any
# other one that is set makes adapters of another kind.
_PLAIN = (
    *_RECORDED.values(),
    *("target_modules", "exclude_modules", "base_model_name_or_path", "revision", "inference_mode"),
    *("task_type", "peft_type", "auto_mapping", "peft_version", "megatron_core", "runtime_config"),
    *("init_lora_weights", "eva_config", "ensure_weight_tying", "qalora_group_size"),
)
# Values of `init_lora_weights` that leave the weights under the adapters as they are; `pissa` and others change them.
_PLAIN_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """Data type of matrix products: bfloat16, float16 or float32, as `--bf16` and `--fp16` say."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else torch.float32


def settle_adapters(args: TrainingArguments, model: str) -> None:
    """With `--lora_weight_path`, take rank, alpha, biases and dropout from the adapters that the run goes on from.

    Args:
        args: changed.
        model: what the run starts from.

    Raises:
        ValueError: if a flag contradicts them, or they are not of the kind that is trained here.
    """
    if not args.lora_weight_path:
        return
    from peft import LoraConfig

    path = Path(args.lora_weight_path) / ADAPTER_CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"--lora_weight_path {args.lora_weight_path!r} holds no {ADAPTER_CONFIG_FILE}; give adapters.")
    held = LoraConfig.from_pretrained(args.lora_weight_path)
    for flag, field in _RECORDED.items():
        value = getattr(held, field)
        if flag not in args.given:
            setattr(args, flag, value)
        elif flag != "lora_dropout" and getattr(args, flag) != value:
            raise ValueError(
                f"--{flag} is {getattr(args, flag)!r}, but the adapters in {args.lora_weight_path!r} have {value!r}, "
                f"and mean something else with another. Leave --{flag} out, or merge them "
                "(scripts/merge_lora_weights.py) and begin new ones on the result."
            )
    adapted = _maps_of_our_kind(held, args.lora_weight_path)
    if "lora_target_modules" not in args.given:
        args.lora_target_modules = ",".join(adapted)
    elif set(adapted_maps(args)) != set(adapted):
        raise ValueError(
            f"--lora_target_modules is {args.lora_target_modules!r}, but the adapters in {args.lora_weight_path!r} are "
            f"those of {','.join(adapted)}; leave the flag out."
        )
    base = held.base_model_name_or_path
    if base and base != model and not same_folder(base, model):
        logger.warning("The adapters in %s were trained on %r; this run puts them on %r.", path.parent, base, model)


def _maps_of_our_kind(held: Any, folder: str) -> tuple[str, ...]:
    """The linear maps that adapters sit on."""
    usual = vars(type(held)())
    given = [name for name in usual if name not in _PLAIN and getattr(held, name)]
    odd = [name for name in given if getattr(held, name) != usual[name]]
    if held.init_lora_weights not in _PLAIN_BEGINNINGS:
        odd.append("init_lora_weights")
    adapted = adapted_by(held.target_modules)
    if odd or adapted is None:
        name = odd[0] if odd else "target_modules"
        raise ValueError(
            f"The adapters in {folder!r} have {name} {getattr(held, name)!r}; only plain LoRA on {', '.join(ADAPTED)} "
            "goes on here. Merge them (scripts/merge_lora_weights.py) and begin new ones on the result."
        )
    return adapted


def adapted_maps(args: TrainingArguments) -> tuple[str, ...]:
    """The linear maps of `--lora_target_modules`.

    Raises:
        ValueError: if one of them is none of a layer of the language model.
    """
    named = [name.strip() for name in args.lora_target_modules.split(",")]
    named = [name if name.endswith("_proj") else f"{name}_proj" for name in named]
    other = [name for name in named if name not in ADAPTED]
    if other:
        raise ValueError(
            f"--lora_target_modules holds {other[0].removesuffix('_proj')!r}; accepted are linear maps of the language "
            f"model's layers: {','.join(ADAPTED)}."
        )
    return tuple(name for name in ADAPTED if name in named)


def same_folder(one: str, other: str) -> bool:
    """Whether two names lead to one folder."""
    return Path(one).is_dir() and Path(other).is_dir() and os.path.samefile(one, other)


def _require_maps(model: Any, args: TrainingArguments) -> None:
    """Refuse maps that were asked for and that the language model lacks; warn of those among the usual ones."""
    there = {name.rsplit(".", 1)[-1] for name, _ in model.decoder.layers.named_modules()}
    absent = [name for name in adapted_maps(args) if name not in there]
    if not absent:
        return
    why = "all experts of a layer are one tensor" if experts_of(model.decoder) else "its layers name others"
    said = f"The language model has no linear maps {', '.join(absent)}: {why}, which adapters leave as it is."
    if "lora_target_modules" in args.given:
        having = ",".join(name.removesuffix("_proj") for name in ADAPTED if name in there)
        raise ValueError(
            f"--lora_target_modules is {args.lora_target_modules!r}. {said} Give --lora_target_modules {having}."
        )
    logger.warning("%s", said)


def add_lora(model: Any, args: TrainingArguments) -> Any:
    """Put adapters around a model whose weights are frozen or trained as chosen already; returns peft's model.

    The language model is frozen whatever was chosen; what else is trained (projector, tower) goes on to be. All that is
    trained is float32 then, unless DeepSpeed keeps float32 copies: beside 4 or 8 bits projector and tower were read in
    the data type of matrix products, and biases (`--lora_bias`) were stored in it while they were frozen.

    Raises:
        ValueError: if `--lora_target_modules` names a linear map that no layer of the language model has.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    _require_maps(model, args)
    beside = chain(projector_weights(model).values(), *(tower.parameters() for tower in model.vision_towers()))
    trained = [weight for weight in beside if weight.requires_grad]
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules=lora_targets(model, adapted_maps(args)),
        task_type=TaskType.CAUSAL_LM,
    )
    # Adapters start from the seed alone, however many random numbers loading the model took on this rank.
    torch.manual_seed(args.seed)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not args.deepspeed)
    for weight in trained:
        weight.requires_grad_(True)
    for weight in wrapped.parameters() if not args.deepspeed else ():
        if weight.requires_grad:
            weight.data = weight.data.float()
    if args.lora_weight_path:
        load_adapters(wrapped, args.lora_weight_path)
        logger.info("Adapters go on from %s.", args.lora_weight_path)
    return wrapped
