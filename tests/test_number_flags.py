"""Numbers on command lines that no program can mean are refused when they are read, in a sentence."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import transformers

from llava.train import supported
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments, parse_arguments
from llava.train.ranges import RANGES

BASE = ["--data_path", "d.json", "--output_dir", "out", "--use_cpu", "True"]
KINDS = (ModelArguments, DataArguments, TrainingArguments)
NUMERIC = sorted(
    name
    for kind in KINDS
    for name, hint in typing.get_type_hints(kind).items()
    if {int, float} & {hint, *typing.get_args(hint)}
    and bool not in (hint, *typing.get_args(hint))
    and name not in supported.REFUSED
    and any(field.name == name and field.init for field in dataclasses.fields(kind))
)
# What no range holds: not a number, no finite number, and what float32 or int64 cannot hold.
NEVER = ("nan", "inf", "-inf", "1e39", "-1e39", str(10**40), str(-(10**40)))
REAL = {
    name
    for name in NUMERIC
    if float in typing.get_args(hint := typing.get_type_hints(TrainingArguments).get(name)) or hint is float
} | {"max_bad_share", "dominant_num", "context_num", "video_fps", "video_flip"}


def refusal(*words: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse_arguments([*BASE, *words])
    return str(caught.value)


def test_every_number_that_training_accepts_has_a_range() -> None:
    """A new release of transformers, or a new flag of ours, fails here until its range is written down."""
    assert {"learning_rate", "lora_r", "max_bad_share", "dominant_num", "save_total_limit"} <= set(NUMERIC)
    assert sorted(RANGES) == NUMERIC


@pytest.mark.parametrize("name", NUMERIC)
def test_no_flag_of_training_takes_what_is_no_number_of_its_kind(name: str) -> None:
    """What an int flag cannot even hold, argparse refuses with status 2."""
    for value in NEVER:
        if name in REAL or value.lstrip("-").isdigit():
            said = refusal(f"--{name}={value}")
            is_said = (f"; it must be {RANGES[name]}.", "; it must be a number of steps, or a share below 1.")
            assert said.startswith(f"--{name} is ") and said.endswith(is_said), said
        else:
            with pytest.raises(SystemExit) as caught:
                parse_arguments([*BASE, f"--{name}={value}"])
            assert caught.value.code == 2


REFUSED = {
    "gradient_accumulation_steps": "-1 0",
    "num_train_epochs": "0 -1 -0.0",
    "max_steps": "0 -2",
    "learning_rate": "-1 -1e-9 3.5e38",
    "mm_projector_lr": "-1 0",
    "mm_vision_tower_lr": "-1e-6 0",
    "warmup_steps": "-1 -0.5 2.5",
    "weight_decay": "-0.01",
    "adam_beta1": "1 -0.1 1.5",
    "adam_beta2": "1 -1",
    "adam_epsilon": "0 -1e-8 1e-50",
    "max_grad_norm": "-1",
    "seed": "-1 4294967296",
    "data_seed": "-1 4294967296",
    "per_device_train_batch_size": "0 -1",
    "per_device_eval_batch_size": "0 -1",
    "logging_steps": "0 -1 1.5",
    "save_steps": "0 -1 -0.5 2.5",
    "eval_steps": "0 -1",
    "eval_delay": "-1",
    "save_total_limit": "0 -1",
    "dataloader_num_workers": "-2 100000",
    "dataloader_prefetch_factor": "0 -1",
    "torch_empty_cache_steps": "0 -1",
    "ddp_timeout": "0 -1",
    "ddp_bucket_cap_mb": "0 -1",
    "lora_r": "0 -1",
    "lora_alpha": "0 -1",
    "lora_dropout": "1 -0.1 2",
    "bits": "0 -1 3 5 32",
    "model_max_length": "0 -1 1",
    "max_tokens_per_device": "0 -1 15",
    "max_bad_share": "-0.1 1.1",
    "video_fps": "0 -1 1001",
    "video_flip": "-0.1 1.1",
    "tokenizer_model_max_length": "0 -1 1",
    "frames_upbound": "-1 1000001",
    "min_pixels": "0 -1",
    "max_pixels": "0 -1",
    "video_min_pixels": "0 -1",
    "video_max_pixels": "0 -1",
    "video_min_frames": "0 1000001",
    "video_max_frames": "0 1000001",
    "peak_tflops": "0 -1",
    "mm_vision_select_layer": "100000",
    "dominant_num": "0 -1",
    "context_num": "-1",
    "cluster_width": "0 -1",
    "local_rank": "-2",
    "eval_accumulation_steps": "0 -1",
}


@pytest.mark.parametrize("name", NUMERIC)
def test_values_out_of_range_are_refused_before_anything_is_loaded(name: str) -> None:
    for value in REFUSED[name].split():
        said = refusal(f"--{name}", value)
        shown = str(float(value) if name in REAL else int(value))
        assert said.startswith((f"--{name} is {shown}; it must be ", f"--{name} is {value}; it must be ")), said


def test_a_share_of_warm_up_above_one_is_refused_under_the_name_that_was_typed() -> None:
    for value in ("1.5", "-0.1", "nan", "inf"):
        assert refusal("--warmup_ratio", value).startswith(f"--warmup_ratio is {value}; it must be a share")


@pytest.mark.parametrize(
    "words",
    [
        "--max_steps -1",
        "--max_steps 1",
        "--num_train_epochs 0.01",
        "--learning_rate 2e-5",
        "--warmup_ratio 0.03",
        "--warmup_ratio 0",
        "--warmup_steps 0.03",
        "--warmup_steps 100",
        "--warmup_steps 0",
        "--logging_steps 0.1",
        "--logging_steps 1",
        "--save_steps 0.25",
        "--save_steps 24000",
        "--max_grad_norm 0",
        "--weight_decay 0.",
        "--adam_beta1 0",
        "--adam_beta2 0.999",
        "--seed 0",
        "--seed 4294967295",
        "--lora_enable True --lora_dropout 0",
        "--dataloader_num_workers 0",
        "--max_bad_share 0",
        "--max_bad_share 1",
        "--mm_vision_select_layer -2",
        "--save_total_limit 1",
        "--eval_steps 0.5 --eval_strategy steps --eval_data_path e.json",
        "--eval_strategy no --eval_steps 1",
        "--local_rank -1",
        "--context_num 0",
        "--dominant_num 0.65 --context_num 0.05",
        "--learning_rate 0",
    ],
)
def test_values_at_the_ends_of_the_ranges_and_shares_of_steps_go_on_working(words: str) -> None:
    parse_arguments([*BASE, *words.split()])


def test_the_defaults_of_transformers_lie_in_the_ranges() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(transformers.TrainingArguments)}
    for kind in KINDS:
        defaults |= {field.name: field.default for field in dataclasses.fields(kind)}
    assert [name for name in NUMERIC if defaults[name] is not None and defaults[name] not in RANGES[name]] == []
