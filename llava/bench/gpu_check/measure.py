"""The parts that measure: prefill, training step and decoding of a LLaVA with random weights, budget against budget.

All budgets run in turn within one process (A B C D A B C D), after one call each to warm up, so that a change of load
or clock touches all of them. Out of memory is the result of a row, not the end of the run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from llava.bench.gpu_check.task import NotHereError, PartTask
from llava.compression.config import CompressionConfig
from llava.cost.flops import average_visual_tokens, training_passes, visual_tokens_per_layer
from llava.cost.hardware import device_peak
from llava.cost.shapes import VisionShape
from llava.cost.timing import timed, wait_for
from llava.model import measured_work
from llava.model.measured_work import row_flops, train_step
from llava.model.random_weights import random_batch, random_model

BASELINE = "none"
BUDGETS = (BASELINE, "duet-192", "duet-128", "duet-64")
TEXT_TOKENS = 100
LAST_LAYERS = 4
"""Whose gradients are taken where those of all layers do not fit."""


@dataclass(frozen=True)
class BenchmarkSizes:
    """How much is asked of a shape.

    Attributes:
        batches: batch sizes of prefill and decoding.
        steps: batches of a training step to try, rising.
        rounds: after the warm-up, while time is left.
        new_tokens: number of tokens that decoding makes.
        text: tokens of a row's prompt beside its image.
    """

    batches: tuple[int, ...]
    steps: tuple[int, ...]
    rounds: int
    new_tokens: int
    text: int


SIZES = {
    "llava-1.5-7b": BenchmarkSizes((1, 16), (1, 2, 4, 8, 16, 32, 64), 10, 32, TEXT_TOKENS),
    "tiny": BenchmarkSizes((1, 2), (1, 2), 2, 3, 20),
}


@dataclass
class Measured:
    """One variant: seconds of every round and the most bytes its tensors took on the device (None on a CPU)."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None


def prefill(task: PartTask) -> bool:
    """The forward pass from pixels and ids to the logits of the first answer token."""
    model = _model(task)
    for size in SIZES[task.shape].batches:
        inputs = random_batch(model, size, SIZES[task.shape].text)
        calls = {name: partial(measured_work.prefill, model, inputs, _config(name)) for name in BUDGETS}
        flops = {name: row_flops(model, _config(name), SIZES[task.shape].text) for name in BUDGETS}
        _compare(task, model, {name: partial(timed, call, model.device) for name, call in calls.items()}, size, flops)
    return True


def train(task: PartTask) -> bool:
    """Forward and backward of everything but the frozen tower, activations checkpointed, no optimizer."""
    model = _model(task).train()
    model.activation_checkpointing_enable()
    trained, size = "all but the vision tower", _largest_batch(task, model)
    if size is None:
        trained, size = f"the last {LAST_LAYERS} layers", _freeze_all_but_last(task, model)
    if size is None:
        raise NotHereError("Not even one row fits with the gradients of a few layers.")
    text = SIZES[task.shape].text
    inputs = random_batch(model, size, text, labels=True)
    calls = {name: partial(train_step, model, inputs, _config(name)) for name in BUDGETS}
    whole = trained.startswith("all")
    flops = {name: row_flops(model, _config(name), text, passes=training_passes(True, True)) for name in BUDGETS}
    without = {name: row_flops(model, _config(name), text, passes=training_passes(True, False)) for name in BUDGETS}
    variants = {name: partial(timed, call, model.device) for name, call in calls.items()}
    _compare(
        task,
        model,
        variants,
        size,
        flops if whole else None,
        without if whole else None,
        gradients_of=trained,
        activation_checkpointing=True,
    )
    return True


def decode(task: PartTask) -> bool:
    """New tokens behind a filled cache, one at a time; the prefill is not in the time."""
    model = _model(task)
    sizes = SIZES[task.shape]
    for size in sizes.batches:
        inputs = random_batch(model, size, sizes.text)
        variants = {name: partial(_decode_seconds, model, inputs, _config(name), sizes.new_tokens) for name in BUDGETS}
        _compare(task, model, variants, size, new_tokens=sizes.new_tokens)
    return True


def _decode_seconds(model: Any, inputs: dict[str, torch.Tensor], config: CompressionConfig, count: int) -> float:
    filled = measured_work.prefill(model, inputs, config)
    return timed(partial(measured_work.decode, model, filled, count), model.device)


def _model(task: PartTask) -> Any:
    """The model with random weights, made on the device: 16 bits on a GPU, 32 on a CPU.

    Raises:
        NotHereError: for a big model on a CPU.
    """
    device = torch.device(task.device)
    if device.type == "cpu" and task.shape != "tiny":
        raise NotHereError(f"There is no GPU here, and {task.shape} takes hours on a CPU; --shape tiny is for one.")
    torch.manual_seed(0)
    began = time.monotonic()
    model = random_model(task.shape, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    wait_for(device)
    task.found(
        "row",
        shape=task.shape,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        parameters=sum(weight.numel() for weight in model.parameters()),
        build_seconds=round(time.monotonic() - began, 2),
    )
    return model


def _config(name: str) -> CompressionConfig:
    return CompressionConfig.from_preset(name)


def _compare(
    task: PartTask,
    model: Any,
    variants: Mapping[str, Callable[[], float]],
    size: int,
    flops: Mapping[str, float] | None = None,
    model_flops: Mapping[str, float] | None = None,
    **about: Any,
) -> None:
    """Run variants in turn and write a line for each round and each variant.

    Args:
        task: takes the results and knows the time left.
        model: the model that they run.
        variants: a name, and a call that does the work once and returns its seconds.
        size: rows of the batch.
        flops: FLOPs of one row, recomputation included; None where they are not known.
        model_flops: the same without recomputation, if that differs.
        about: what else belongs in each line.
    """
    about = {"batch": size, "text_tokens": SIZES[task.shape].text, **about}
    measured: dict[str, Measured] = {}
    for name, run in variants.items():
        seconds, error = attempt(run)
        if error is None:
            measured[name] = Measured()
            task.found("round", round=0, warm_up=True, seconds={name: seconds}, **about)
        else:
            task.found("row", compression=name, error=error, **about)
    last = 0.0
    for number in range(1, SIZES[task.shape].rounds + 1):
        if number > 1 and task.left() < 1.5 * last + 2:
            break
        last = _round(task, model, variants, measured, number, about)
    for name, result in measured.items():
        if result.seconds:
            task.found("row", **_row(model, name, measured, size, flops, model_flops, about))


def _round(
    task: PartTask,
    model: Any,
    variants: Mapping[str, Callable[[], float]],
    measured: dict[str, Measured],
    number: int,
    about: Mapping[str, Any],
) -> float:
    """Every variant once; returns how long all of them took."""
    began, on_gpu, seconds = time.monotonic(), model.device.type == "cuda", {}
    for name, result in list(measured.items()):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
        taken, error = attempt(variants[name])
        if taken is None:
            del measured[name]
            task.found("row", compression=name, error=error, **about)
            continue
        seconds[name] = taken
        result.seconds.append(taken)
        if on_gpu:
            result.peak = max(result.peak or 0, torch.cuda.max_memory_allocated(model.device))
    task.found("round", round=number, seconds=seconds, **about)
    return time.monotonic() - began


def attempt(run: Callable[[], float]) -> tuple[float | None, str | None]:
    """Seconds of a call, or why it ran out of memory; what it had taken is free again then."""
    error = None
    try:
        return run(), None
    except torch.OutOfMemoryError as problem:
        error = f"out of memory: {str(problem).splitlines()[0]}"
    gc.collect()  # outside the handler, whose traceback holds the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, error


def _row(
    model: Any,
    name: str,
    measured: Mapping[str, Measured],
    size: int,
    flops: Mapping[str, float] | None,
    model_flops: Mapping[str, float] | None,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What is known of a variant: time, memory, and both against the baseline and the limits."""
    result, seconds = measured[name], median(measured[name].seconds)
    vision = VisionShape.of(model.get_vision_tower().config)
    tokens = visual_tokens_per_layer(_config(name), model.config.num_hidden_layers, vision)
    row: dict[str, Any] = {
        "compression": name,
        "visual_tokens": round(average_visual_tokens(tokens), 2),
        **about,
        "seconds": result.seconds,
        "median": seconds,
        "peak_gib": result.peak and round(result.peak / 2**30, 3),
    }
    if "new_tokens" in about:
        row["tokens_per_second"] = size * about["new_tokens"] / seconds
    baseline = measured.get(BASELINE)
    faster = median(baseline.seconds) / seconds if baseline and baseline.seconds else None
    row["faster"] = faster
    if flops is None:
        return row
    possible = flops[BASELINE] / flops[name]
    peak = device_peak(model.device, model.dtype)
    work = {"utilisation": flops, "model_flops_utilisation": model_flops or flops}
    row |= {key: each[name] * size / seconds / peak if peak else None for key, each in work.items()}
    row |= {"tflop_per_second": flops[name] * size / seconds / 1e12, "faster_by_flops": possible}
    # Of the time that FLOPs would let it save, the share that it saves.
    row["share_of_flop_limit"] = (1 - 1 / faster) / (1 - 1 / possible) if faster and possible > 1 else None
    return row


def _largest_batch(task: PartTask, model: Any) -> int | None:
    """The largest batch of an uncompressed step that fits and leaves time to measure; None if one row does not fit."""
    sizes, best = SIZES[task.shape], None
    for size in sizes.steps:
        call = partial(train_step, model, random_batch(model, size, sizes.text, labels=True), _config(BASELINE))
        seconds, error = attempt(partial(timed, call, model.device))
        del call
        model.zero_grad(set_to_none=True)
        task.found("search", batch=size, seconds=seconds, error=error)
        if seconds is None:
            break
        best = size
        # The next one takes twice as long, and so do a warm-up and three rounds of all budgets at about half of it.
        if task.left() < 2 * seconds * (1 + 4 * len(BUDGETS) * 0.6):
            task.found("search", batch=2 * size, seconds=None, error="not tried: no time would be left to measure it")
            break
    return best


def _freeze_all_but_last(task: PartTask, model: Any) -> int | None:
    """Train a few layers only, and search again."""
    model.requires_grad_(False)
    model.get_model().layers[-LAST_LAYERS:].requires_grad_(True)
    return _largest_batch(task, model)
