"""The parts that measure: prefill, training step and decoding of a LLaVA with random weights, budget against budget.

What is timed, its limits and the clock are those of `python -m llava.bench`. Cases run in turn within one process
(A B C D A B C D), after one call each to warm up, so that a change of load or clock touches all of them. Out of memory
is the result of a row, not the end of the run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from llava.bench import modes, results
from llava.bench.attribution import attributed, matched
from llava.bench.cases import BASELINE, Case, Setting, as_trained
from llava.bench.clock import Measured, attempt, rounds
from llava.bench.gpu_check.task import NotHereError, PartTask
from llava.bench.inputs import rows_of, text_lengths, text_of
from llava.bench.peers import PEERS
from llava.compression.config import CompressionConfig
from llava.cost.hardware import device_peak
from llava.cost.timing import wait_for
from llava.model.measured_work import train_step
from llava.model.random_weights import random_model

BUDGETS = (BASELINE, "duet-192", "duet-128", "duet-64")
TEXT_TOKENS = 200
"""Of a row, as docs/performance.md computes with."""
LAST_LAYERS = 4
"""Whose gradients are taken where those of all layers do not fit."""


@dataclass(frozen=True)
class BenchmarkSizes:
    """How much is asked of a shape.

    Attributes:
        batches: batch sizes of prefill.
        decoded: batch sizes of decoding.
        steps: batches of a training step to try, rising.
        rounds: after the warm-up, while time is left.
        new_tokens: number of tokens that decoding makes.
        text: tokens of a row's prompt beside its image.
        budgets: that are compared, the first with all others.
        others: budgets of other methods.
        model: of `llava.model.random_weights`.
    """

    batches: tuple[int, ...]
    decoded: tuple[int, ...]
    steps: tuple[int, ...]
    rounds: int
    new_tokens: int
    text: int
    budgets: tuple[str, ...]
    others: tuple[str, ...]
    model: str


SIZES = {
    "llava-1.5-7b": BenchmarkSizes(
        (1, 16),
        (1, 8, 32),
        (1, 2, 4, 8, 16, 32, 64),
        5,
        32,
        TEXT_TOKENS,
        BUDGETS,
        ("visionzip-192", "visionzip-64", "pyramiddrop", "fastv"),
        "llava-1.5-7b",
    ),
    "tiny": BenchmarkSizes((2,), (2,), (2,), 1, 3, 20, (BASELINE, "duet-64"), (), "tiny-168"),
}


def prefill(task: PartTask) -> bool:
    """The forward pass from pixels and ids to the logits of the first answer token; at the largest batch with ragged
    text and other programs, too."""
    model = _model(task)
    sizes = SIZES[task.shape]
    for size in sizes.batches:
        _compare(task, "prefill", _setting(model, task, size))
    largest = sizes.batches[-1]
    _compare(task, "prefill", _setting(model, task, largest, "ragged"))
    beside = _setting(model, task, largest, budgets=(*sizes.budgets, *sizes.others), peers=PEERS)
    _compare(task, "prefill", beside)
    return True


def train(task: PartTask) -> bool:
    """Forward and backward of everything but the frozen tower, no optimizer: every budget with activations computed
    again; ragged text, padded and packed; packed with activations kept, or as memory allows; other programs."""
    model = _model(task).train()
    trained, size = "all but the vision tower", _largest_batch(task, model)
    if size is None:
        trained, size = f"the last {LAST_LAYERS} layers", _freeze_all_but_last(task, model)
    if size is None:
        raise NotHereError("Not even one row fits with the gradients of a few layers.")
    sizes, of = SIZES[task.shape], partial(_setting, model, task, size)
    budgets, on = sizes.budgets, ("on",)
    groups = [of(checkpointing=on)]
    if trained.startswith("all"):
        groups.append(of("ragged", packings=("off", "on"), checkpointing=on))
        groups.append(of(packings=("on",), checkpointing=("on", "off", "auto")))
        groups.append(of("equal", (*budgets, *sizes.others), peers=PEERS, checkpointing=on))
    for setting in groups:
        _compare(task, "train", setting, gradients_of=trained)
    return True


def decode(task: PartTask) -> bool:
    """New tokens behind a filled cache, one at a time; the prefill is not in the time."""
    model = _model(task)
    for size in SIZES[task.shape].decoded:
        _compare(task, "decode", _setting(model, task, size))
    return True


def attribution(task: PartTask) -> bool:
    """Where the milliseconds of a prefill and of a training step go, by torch's profiler; at batch 2."""
    model = _model(task)
    setting = _setting(model, task, 2)
    for mode in ("prefill", "train"):
        for case in modes.MODES[mode](setting):
            about = {"mode": mode, "compression": case.compression, "packing": case.packing, "batch": 2}
            attempt(case, model.device)  # to warm up
            taken, error = attempt(case, model.device)
            if taken is None:
                task.found("row", **about, error=error)
            else:
                task.found("row", **about, **matched(attributed(case, model.device), taken.wall).to_json())
    model.zero_grad(set_to_none=True)
    return True


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
    model = random_model(SIZES[task.shape].model, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
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


def _setting(
    model: Any, task: PartTask, size: int, text: str = "equal", budgets: Sequence[str] = (), **more: Any
) -> Setting:
    """A batch of so many rows under these budgets."""
    sizes = SIZES[task.shape]
    compressions = {name: CompressionConfig.from_preset(name) for name in budgets or sizes.budgets}
    return Setting(model, compressions, text_lengths(text, size, sizes.text), new_tokens=sizes.new_tokens, **more)


def _compare(task: PartTask, mode: str, setting: Setting, **about: Any) -> None:
    """Run the cases of a mode in turn and write a line for each round and each case.

    Args:
        task: takes the results and knows the time left.
        mode: of `llava.bench.modes`.
        setting: what its cases are made of; the first is what others are compared with.
        about: what else belongs in each line.
    """
    cases, lengths = modes.MODES[mode](setting), setting.lengths
    text = text_of(lengths)
    about = {"text": text, "batch": len(lengths), **about}
    measured = {case.name: Measured() for case in cases}
    for one in rounds(cases, SIZES[task.shape].rounds, torch.device(task.device), task.left):
        one.note_in(measured)
        seconds = {name: taken.wall for name, taken in one.taken.items()}
        task.found("round", round=one.number, warm_up=one.number == 0, seconds=seconds, **about)
    whole = about.get("gradients_of", "all").startswith("all")
    for case, row in zip(cases, results.rows(mode, text, lengths, cases, measured, "wall"), strict=True):
        if measured[case.name].wall or "error" in row:
            task.found("row", **_row(task, row, whole) | about)


def _row(task: PartTask, row: dict[str, Any], whole: bool) -> dict[str, Any]:
    """A row of the benchmark with what is known of the device; without limits where FLOPs are not those of it all."""
    if not whole:
        computed = ("limit", "limit_padded", "quotient", "work", "work_per_second", "padding_share")
        return {name: value for name, value in row.items() if name not in computed}
    device = torch.device(task.device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    peak, rate = device_peak(device, dtype), row["work_per_second"]
    if "bytes_of_weights" not in row:
        row["utilisation"] = rate / peak if peak and rate else None
    limit, faster = row["limit"], row["speedup"]
    # Of the time that FLOPs would let it save, the share that it saves.
    row["share_of_flop_limit"] = (1 - 1 / faster) / (1 - 1 / limit) if faster and limit and limit > 1 else None
    return row


def _largest_batch(task: PartTask, model: Any) -> int | None:
    """The largest batch of an uncompressed step that fits and leaves time to measure; None if one row does not fit."""
    sizes, best = SIZES[task.shape], None
    for size in sizes.steps:
        batch = rows_of(model, text_lengths("equal", size, sizes.text), labels=True)
        step = partial(_step, model, batch)
        taken, error = attempt(Case(BASELINE, "off", step, partial(as_trained, model)), model.device)
        model.zero_grad(set_to_none=True)
        seconds = taken.wall if taken is not None else None
        task.found("search", batch=size, seconds=seconds, error=error)
        if seconds is None:
            break
        best = size
        # The next one takes twice as long, and so do a warm-up and three rounds of all budgets at about half of it.
        if task.left() < 2 * seconds * (1 + 4 * len(sizes.budgets) * 0.6):
            task.found("search", batch=2 * size, seconds=None, error="not tried: no time would be left to measure it")
            break
    return best


def _step(model: Any, batch: dict[str, Any], _: object) -> None:
    train_step(model, batch, CompressionConfig())


def _freeze_all_but_last(task: PartTask, model: Any) -> int | None:
    """Train a few layers only, and search again."""
    model.requires_grad_(False)
    model.get_model().layers[-LAST_LAYERS:].requires_grad_(True)
    return _largest_batch(task, model)
