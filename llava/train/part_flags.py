"""Which parts of a model are trained, in the flags of LLaVA-NeXT's and Qwen's programs, as LLaVA's own say it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava.train.arguments import ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

TOWER, PROJECTOR, LANGUAGE = PARTS = ("mm_vision_tower", "mm_mlp_adapter", "mm_language_model")
"""Values of `--mm_tunable_parts`."""
_OF_QWEN = {"tune_mm_vision": TOWER, "tune_mm_mlp": PROJECTOR, "tune_mm_llm": LANGUAGE}
_OF_LLAVA = ("tune_mm_mlp_adapter", "freeze_backbone", "unfreeze_mm_vision_tower", "freeze_mm_mlp_adapter")


def settle_parts(model_args: ModelArguments, args: TrainingArguments) -> None:
    """Write what `--mm_tunable_parts`, or `--tune_mm_llm`, `--tune_mm_mlp` and `--tune_mm_vision`, ask for as LLaVA's.

    `--mm_tunable_parts mm_mlp_adapter` is pre-training (`--tune_mm_mlp_adapter`), whose folder holds the projector
    alone, as LLaVA-NeXT's program leaves it; Qwen's leaves the whole model, whatever was trained.

    Args:
        model_args, args: changed.

    Raises:
        ValueError: if there is no such part, none is trained, or two sets of these flags are given.
    """
    qwen = [flag for flag in _OF_QWEN if getattr(model_args, flag) is not None]
    if not model_args.mm_tunable_parts and not qwen:
        return
    given = [flag for flag in _OF_LLAVA if flag in (model_args.given | args.given)]
    if model_args.mm_tunable_parts:
        if qwen:
            raise ValueError(f"--mm_tunable_parts and --{qwen[0]} both say what is trained; choose one.")
        parts = _named(model_args.mm_tunable_parts)
        if given:
            logger.warning("--mm_tunable_parts says what is trained; --%s has no effect beside it.", given[0])
    else:
        if given:
            raise ValueError(f"--{qwen[0]} and --{given[0]} both say what is trained; choose one set of flags.")
        parts = {_OF_QWEN[flag] for flag in qwen if getattr(model_args, flag)}
        if not parts and not args.lora_enable:
            flags = ", ".join(f"--{flag}" for flag in _OF_QWEN)
            raise ValueError(f"--{qwen[0]} False leaves nothing to train: of {flags} at least one must be True.")
    _write(parts, model_args, args, alone=bool(model_args.mm_tunable_parts) and parts == {PROJECTOR})


def _named(text: str) -> set[str]:
    parts = {part.strip() for part in text.split(",") if part.strip()}
    other = sorted(parts - set(PARTS))
    if other or not parts:
        why = " There is no resampler here." if "mm_vision_resampler" in other else ""
        raise ValueError(
            f"--mm_tunable_parts is {text!r}; accepted are {', '.join(PARTS)}, with commas between them.{why}"
        )
    return parts


def _write(parts: set[str], model_args: ModelArguments, args: TrainingArguments, alone: bool) -> None:
    if args.lora_enable:
        if model_args.mm_tunable_parts and LANGUAGE not in parts:
            raise ValueError(
                f"--lora_enable trains adapters of the language model, but --mm_tunable_parts leaves it out; add "
                f"{LANGUAGE}, or leave --lora_enable out."
            )
        alone = False
    model_args.tune_mm_mlp_adapter = alone
    model_args.freeze_backbone = LANGUAGE not in parts and not args.lora_enable
    args.freeze_mm_mlp_adapter = PROJECTOR not in parts
    model_args.unfreeze_mm_vision_tower = TOWER in parts
    if args.mm_vision_tower_lr is not None and TOWER not in parts:
        raise ValueError(
            "--mm_vision_tower_lr is a rate for the vision tower, which is not among the parts that are trained; "
            "leave it out, or train the tower."
        )
