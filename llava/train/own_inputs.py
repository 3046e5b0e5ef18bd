"""Keeps a run from overwriting the model or data that it reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llava.train.arguments import TOWER_KINDS, DataArguments, ModelArguments, TrainingArguments

_WRITTEN = (
    "config.json",
    "trainer_state.json",
    "train_summary.json",
    "run_facts.json",
    "preempted.json",
    "manifest.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "mm_projector.bin",
)
"""Names in the output folder that a run gives to its own files."""


def require_inputs_kept(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments) -> None:
    """Refuse an output folder in which the run would replace or remove a model or data that it reads.

    Raises:
        ValueError: if the output folder holds a model of another program; naming the flag, if the folder is that input,
            or holds that file under a name that the run writes, or holds it inside one of its own checkpoints, which
            are removed in their time.
    """
    output = Path(args.output_dir)
    foreign = sorted(output.glob("pytorch_model*.bin*"))
    if foreign:  # transformers wrote those before safetensors; no run here does
        raise ValueError(
            f"--output_dir {str(output)!r} holds a model that no run here wrote ({foreign[0].name}), whose "
            "configuration and tokenizer this one would replace; choose another --output_dir."
        )
    folders = {
        "--model_name_or_path": model_args.model_name_or_path,
        **{f"--{kind}_tower": getattr(model_args, f"{kind}_tower") for kind in TOWER_KINDS},
        "--lora_weight_path": args.lora_weight_path,
        "--image_folder": data_args.image_folder if data_args.image_folder != "." else None,  # the default
        "--video_folder": data_args.video_folder,
    }
    files = {
        "--data_path": data_args.data_path,
        "--eval_data_path": data_args.eval_data_path,
        "--pretrain_mm_mlp_adapter": model_args.pretrain_mm_mlp_adapter,
    }
    # A run writes a projector of its own only where it trains nothing else.
    written = _WRITTEN if model_args.tune_mm_mlp_adapter else set(_WRITTEN) - {"mm_projector.bin"}
    named = [(flag, one) for flag, given in {**folders, **files}.items() for one in _each(given)]
    for flag, given in named:
        if not given or not os.path.exists(given):
            continue
        place, real, target = Path(given), Path(given).resolve(), output.resolve()
        within = real.relative_to(target).parts if real.is_relative_to(target) else ()
        same = flag in folders and os.path.isdir(output) and place.samefile(output)
        replaced = flag in files and len(within) == 1 and within[0] in written
        if same or replaced or (within and within[0].removeprefix("checkpoint-").isdigit()):
            raise ValueError(
                f"--output_dir is {str(output)!r}, where this run would write over {flag} {str(given)!r} or remove it; "
                "choose another --output_dir."
            )


def _each(given: str | Sequence[str] | None) -> Sequence[str]:
    """The paths of a flag that takes one or several."""
    return [given] if isinstance(given, str) else given or []
