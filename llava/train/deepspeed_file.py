"""Checks the JSON file that `--deepspeed` names before transformers, accelerate and DeepSpeed read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.common.json_files import need, read_object
from llava.common.shown import shown

_ADVICE = "write it like scripts/zero2.json"
_AUTO = "auto"
_PARTS = ("fp16", "bf16", "zero_optimization", "optimizer", "scheduler", "activation_checkpointing", "amp", "aio")
# Whole numbers; all but the first may be "auto".
_COUNTS = ("steps_per_print", "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check_deepspeed_file(arguments: Sequence[str]) -> None:
    """Check the file that `--deepspeed` names on a command line, if it does.

    Args:
        arguments: arguments of the program.

    Raises:
        ValueError: if it is missing, not a JSON object, or a setting has another type than DeepSpeed takes; names the
            file, the setting, its value and what is accepted.
    """
    named = [after for word, after in zip(arguments, arguments[1:], strict=False) if word == "--deepspeed"]
    named += [word.partition("=")[2] for word in arguments if word.startswith("--deepspeed=")]
    if not named or named[-1].lstrip().startswith("{"):  # transformers also takes the settings themselves
        return
    path = Path(named[-1])
    if not path.exists():
        raise ValueError(f"There is no file {shown(str(path))}; check --deepspeed.")
    try:
        settings = read_object(path, _ADVICE, mark=False)
        _check(settings, str(path))
    except ValueError as error:
        raise ValueError(f"--deepspeed: {error}") from error


def _check(settings: dict[str, Any], place: str) -> None:
    for key in _PARTS:
        part = need(settings, key, dict, place, optional=True) or {}
        if "enabled" in part and part["enabled"] != _AUTO:
            need(part, "enabled", bool, f"{place}: {key}")
    for key in _COUNTS:
        _number(settings, key, int, place)
    _number(settings, "gradient_clipping", float, place)
    zero = need(settings, "zero_optimization", dict, place)
    stage = need(zero, "stage", int, f"{place}: zero_optimization", optional=True)
    if stage not in (None, 0, 1, 2, 3):
        raise ValueError(f"stage in {place}: zero_optimization is {shown(stage)}; it must be 0, 1, 2 or 3.")
    for key, value in zero.items():
        if key.startswith("offload_"):
            part = need({key: value}, key, dict, f"{place}: zero_optimization", optional=True) or {}
            need(part, "device", str, f"{place}: zero_optimization: {key}", optional=True)
        elif key.endswith(("_size", "_threshold", "_numel", "_parameters", "_distance")):
            _number(zero, key, float, f"{place}: zero_optimization")
        elif key.startswith(("overlap_", "contiguous_", "reduce_scatter", "allgather_partitions", "stage3_gather")):
            _number(zero, key, bool, f"{place}: zero_optimization")
    for key in ("optimizer", "scheduler"):
        part = settings.get(key) or {}
        need(part, "type", str, f"{place}: {key}", optional=not part)
        need(part, "params", dict, f"{place}: {key}", optional=True)


def _number(values: dict[str, Any], key: str, kind: type, place: str) -> None:
    value = values.get(key)
    if value == _AUTO or value is None:
        return
    need(values, key, kind, place)
    if kind is not bool and value < 0:
        raise ValueError(f'{key} in {place} is {shown(value)}; it must be a number from 0 up, or "auto".')
