"""LoRA and QLoRA: small adapters are trained while the language model stays as it is, in 16, 8 or 4 bits."""

from __future__ import annotations

import logging
from typing import Any

import torch

from llava.model.lora import LORA_TARGETS, load_adapters
from llava.train.arguments import TrainingArguments

logger = logging.getLogger(__name__)


def compute_dtype(args: TrainingArguments) -> torch.dtype:
    """What matrix products are computed in."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else torch.float32


def add_lora(model: Any, args: TrainingArguments) -> Any:
    """Put adapters around a model whose weights are frozen or trained as chosen already; returns peft's model.

    The language model is frozen whatever was chosen; what else is trained (projector, tower) goes on to be.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    trained = [weight for weight in model.get_model().parameters() if weight.requires_grad]
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias=args.lora_bias,
        target_modules=LORA_TARGETS,
        task_type=TaskType.CAUSAL_LM,
    )
    # Adapters start from the seed alone, however many random numbers loading the model took on this rank.
    torch.manual_seed(args.seed)
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not args.deepspeed)
    for weight in trained:
        weight.requires_grad_(True)
    if args.lora_weight_path:
        load_adapters(wrapped, args.lora_weight_path)
        logger.info("Adapters go on from %s.", args.lora_weight_path)
    return wrapped
