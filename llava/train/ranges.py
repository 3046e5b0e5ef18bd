"""What the numbers and paths among the flags of training may be, checked before anything is loaded.

A test fails when a numeric field of the three groups of arguments stands in no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llava.common.number_flags import (
    LARGEST_COUNT,
    MOST_PROCESSES,
    SEED,
    Numbers,
    count,
    not_negative,
    positive,
    require_number,
    share,
)
from llava.common.path_flags import FOLDER_OR_NONE, FOLDER_TO_READ, FOLDER_TO_WRITE, MODEL, TO_READ, Paths
from llava.train.workers import AS_MANY_AS_FIT

_LARGEST_RATE = 3.4e38  # of what float32 holds; a run whose weights grow without bound stops by itself
_INTERVAL = Numbers(1, 2**31 - 1, shares=True)  # of transformers: steps, or a share of all steps

RANGES: Mapping[str, Numbers] = {
    # Length, rate and size of the steps
    "per_device_train_batch_size": count(),
    "per_device_eval_batch_size": count(),
    "gradient_accumulation_steps": count(),
    "num_train_epochs": positive(1e6),
    "max_steps": Numbers(1, 2**31 - 1, also=((-1, "as many as --num_train_epochs asks for"),)),
    "learning_rate": not_negative(_LARGEST_RATE),
    "mm_projector_lr": positive(_LARGEST_RATE),
    "mm_vision_tower_lr": positive(_LARGEST_RATE),
    "warmup_steps": Numbers(0, 2**31 - 1, shares=True),
    "weight_decay": not_negative(100.0),
    "adam_beta1": share(below=True),
    "adam_beta2": share(below=True),
    "adam_epsilon": Numbers(1e-38, 1, whole=False),  # smaller ones are 0 in float32, and 0 divides by 0
    "max_grad_norm": not_negative(1e20),  # 0 switches it off
    "seed": SEED,
    "data_seed": SEED,
    # Memory and devices
    "max_tokens_per_device": count(16),
    "torch_empty_cache_steps": count(),
    "ddp_bucket_cap_mb": count(),
    "ddp_timeout": count(),  # seconds
    "local_rank": count(-1),
    "bits": Numbers(16, 16, also=((8, "LLM.int8"), (4, "QLoRA"))),
    "peak_tflops": positive(1e9),
    # Logging, evaluation and checkpoints
    "logging_steps": _INTERVAL,
    "eval_steps": _INTERVAL,
    "save_steps": _INTERVAL,
    "eval_delay": not_negative(2.0**31 - 1),
    "eval_accumulation_steps": count(),
    "save_total_limit": count(),
    # Data
    "dataloader_num_workers": Numbers(0, MOST_PROCESSES, also=((AS_MANY_AS_FIT, "as many as fit the machine"),)),
    "dataloader_prefetch_factor": count(),
    "model_max_length": count(16),
    "max_bad_share": share(),
    "video_fps": positive(1000),
    "frames_upbound": count(0, 10**6),
    "min_pixels": count(),
    "max_pixels": count(),
    "video_min_pixels": count(),
    "video_max_pixels": count(),
    "video_min_frames": count(1, 10**6),
    "video_max_frames": count(1, 10**6),
    "video_flip": share(),
    "tokenizer_model_max_length": count(16),
    # The model
    "mm_vision_select_layer": count(-1000, 1000),
    "lora_r": count(1, 65536),
    "lora_alpha": count(1, 10**6),
    "lora_dropout": share(below=True),
    "dominant_num": Numbers(1, LARGEST_COUNT, shares=True),
    "context_num": Numbers(0, LARGEST_COUNT, shares=True),
    "cluster_width": count(),
}
"""Field of the arguments -> what is accepted."""

PATHS: Mapping[str, Paths] = {
    "model_name_or_path": MODEL,
    **dict.fromkeys(("vision_tower", "image_tower", "video_tower"), replace(MODEL, empty=True)),
    "pretrain_mm_mlp_adapter": replace(TO_READ, empty=True),
    "data_path": TO_READ,
    "eval_data_path": TO_READ,
    "image_folder": FOLDER_TO_READ,
    "video_folder": FOLDER_TO_READ,
    "data_cache_dir": FOLDER_TO_WRITE,
    "cache_dir": FOLDER_TO_WRITE,
    "output_dir": FOLDER_TO_WRITE,
    "lora_weight_path": FOLDER_OR_NONE,
    "resume_from_checkpoint": replace(TO_READ, empty=True),
}
"""Flag -> what may lie there."""


def require_in_range(said: Mapping[str, Any]) -> None:
    """Check the numbers of a command line.

    Args:
        said: values by the names of their flags, as far as they were given; what is no number is passed over.

    Raises:
        ValueError: for the first that is not accepted; names the flag, its value and the range.
    """
    for name, value in said.items():
        if name in RANGES:
            require_number(name, value, RANGES[name])
