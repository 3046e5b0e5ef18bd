"""What budgets of visual tokens cost a model: computed, realised and measured side by side, in one interleaved run.

    python -m llava.eval.cost --model-path CHECKPOINT --compression none,duet-192,duet-64 --batch-size 8
    python -m llava.eval.cost --model-path llava-1.5-7b --random-weights --device cuda

Every row of a batch holds the same number of text tokens and images, so nothing is padded and the KV cache can be
compared with `llava.cost.flops` to the byte. What the text says does not matter to the cost; it is random.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llava.checkpoints.contents import vision_config
from llava.checkpoints.opening import open_model
from llava.common.json_files import write_json
from llava.common.number_flags import checked_later, count
from llava.common.outputs import require_apart
from llava.common.path_flags import FILE_TO_WRITE, MODEL
from llava.common.presets import family_of
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.flops import kv_bytes, prefill_flops, training_passes, visual_tokens_per_layer
from llava.cost.machine import measured_on
from llava.cost.overview import fitting
from llava.cost.scaling import add_scaling_flag, for_depth
from llava.cost.shapes import DecoderShape, VisionShape
from llava.cost.timing import interleaved, timed, wait_for
from llava.eval.runner.answer_settings import open_checkpoint
from llava.eval.tables.costs import BatchShape, Cost, decode_rate, further_lines, require_at_least, table
from llava.inference.loading_flags import best_device, check_device
from llava.model.cache_name import cache_of
from llava.model.measured_work import decode, prefill, row_flops, shapes_of, train_step
from llava.model.random_weights import SHAPES, random_batch, random_config, random_model

USUAL_BUDGETS = ("none", "duet-192", "duet-128", "duet-64")
DTYPES = ("float32", "bfloat16", "float16")


def measure(model: Any, budgets: dict[str, CompressionConfig], load: BatchShape, repeats: int) -> list[Cost]:
    """Run every budget in turn, `repeats` rounds after one to warm up.

    Raises:
        ValueError: if a budget does not fit the model.
        RuntimeError: if a cache does not take the bytes that were computed.
    """
    require_at_least("repeats", repeats, 1)
    costs = {name: _computed(name, config, model, load) for name, config in budgets.items()}
    batch = random_batch(model, load.rows, load.text_tokens, load.images)
    runs = {name: _Run(model, batch, load, budgets[name], cost) for name, cost in costs.items()}
    interleaved(runs, repeats, model.device)
    for cost in costs.values():
        del cost.prefill_seconds[0], cost.decode_seconds[0]  # the warm-up
    return list(costs.values())


def _computed(name: str, config: CompressionConfig, model: Any, load: BatchShape) -> Cost:
    decoder, vision = shapes_of(model.config, model.get_vision_tower().config)
    tokens = _fitted(name, config, model.config, decoder, vision, load.images)
    flops = prefill_flops(tokens, load.text_tokens, decoder, vision, load.images)
    return Cost(name, tokens, flops, load.rows * kv_bytes(tokens, load.text_tokens, decoder, model.dtype.itemsize))


def _fitted(
    name: str, config: CompressionConfig, model: Any, decoder: DecoderShape, vision: VisionShape, images: int
) -> tuple[int, ...]:
    """Visual tokens of a row in each layer.

    Raises:
        ValueError: if the budget does not fit the model.
    """
    try:
        tokens = visual_tokens_per_layer(config, decoder.layers, vision, images)
        config.check_made_for(model, decoder.layers)
    except ValueError as error:
        raise ValueError(f"Budget {name!r} does not fit this model: {error}") from error
    return tokens


@dataclass(frozen=True)
class _Run:
    """One prefill and the decoding after it, each timed."""

    model: Any
    batch: dict[str, Tensor]
    load: BatchShape
    config: CompressionConfig
    cost: Cost

    def __call__(self) -> None:
        device, answer = self.model.device, self.load.new_tokens - 1
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        output = prefill(self.model, self.batch, self.config)
        wait_for(device)
        self.cost.prefill_seconds.append(time.perf_counter() - start)
        self._compare(cache_of(output).key_value_bytes(), self.load.text_tokens, "the prefill")
        self.cost.decode_seconds.append(timed(partial(decode, self.model, output, answer), device))
        self._compare(cache_of(output).key_value_bytes(), self.load.text_tokens + answer, "the answer")
        if device.type == "cuda":
            self.cost.peak_bytes = max(self.cost.peak_bytes or 0, torch.cuda.max_memory_allocated(device))

    def _compare(self, realised: int, text_tokens: int, when: str) -> None:
        computed = kv_bytes(
            self.cost.visual_tokens, text_tokens, DecoderShape.of(self.model.config), self.model.dtype.itemsize
        )
        if realised != self.load.rows * computed:
            raise RuntimeError(
                f"After {when} the KV cache of {self.cost.budget!r} holds {realised} bytes, but "
                f"{self.load.rows * computed} were computed; one of them is wrong, please report it."
            )


def measure_training(
    model: Any,
    budgets: dict[str, CompressionConfig],
    costs: Sequence[Cost],
    load: BatchShape,
    repeats: int,
    again: bool,
) -> None:
    """Note seconds and FLOPs of training steps, forward and backward of all but the vision tower, in the costs.

    Args:
        model: LLaVA; what it trains stays chosen.
        budgets: compressions by name.
        costs: costs of these budgets, in turn.
        load: rows of a batch; the last fifth of each row's text is its answer.
        repeats: rounds, after one to warm up.
        again: whether activations are computed again in the backward pass.
    """
    model.train().requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    if again:
        model.activation_checkpointing_enable()
    batch = random_batch(model, load.rows, load.text_tokens, load.images, labels=True)
    runs = {name: partial(train_step, model, batch, config) for name, config in budgets.items()}
    passes = training_passes(True, again)
    for cost, seconds in zip(costs, interleaved(runs, repeats, model.device).values(), strict=True):
        cost.train_seconds = seconds
        cost.train_flops = row_flops(model, budgets[cost.budget], load.text_tokens, load.images, passes)
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def measure_tower(
    model: Any, budgets: dict[str, CompressionConfig], costs: Sequence[Cost], load: BatchShape, repeats: int
) -> None:
    """Note seconds of the vision tower on the images of a batch, with the V2V of each budget, in the costs."""
    tower, images = model.get_vision_tower(), random_batch(model, load.rows, load.text_tokens, load.images)["images"]
    runs = {name: partial(tower, images, config.v2v) for name, config in budgets.items()}
    for cost, seconds in zip(costs, interleaved(runs, repeats, model.device).values(), strict=True):
        cost.tower_seconds = seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if "tower" in options.also and not options.images:
            raise ValueError("--also tower measures the vision tower, but --images is 0; give at least 1.")
        require_at_least("repeats", options.repeats, 1)
        load = BatchShape(options.batch_size, options.text_tokens, options.images, options.new_tokens)
        if options.json and not options.json.resolve().parent.is_dir():
            raise ValueError(f"--json names a file in {str(options.json.parent)!r}, which is not a folder.")
        require_apart({"--json": options.json}, [options.model_path, options.model_base, *(options.compression or [])])
        budgets = _budgets(options, load)
        model = _model(options)
        costs = measure(model, budgets, load, options.repeats)
        if "tower" in options.also:
            measure_tower(model, budgets, costs, load, options.repeats)
        if "train" in options.also:
            measure_training(model, budgets, costs, load, options.repeats, options.activation_checkpointing)
    except torch.OutOfMemoryError as error:
        print(f"Out of memory; lower --batch-size or --text-tokens: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    print(measured_on(model.device))
    print(f"{options.model_path}, {str(model.dtype).removeprefix('torch.')}; {load.sentence()}")
    print("\n".join([table(costs, load), *further_lines(costs)]))
    if options.json:
        write_json(options.json, _document(options, model, costs, load), indent=1)
    return 0


def _budgets(options: argparse.Namespace, load: BatchShape) -> dict[str, CompressionConfig]:
    """What is asked for, or those of `USUAL_BUDGETS` that fit; found out before weights are made or read.

    Raises:
        ValueError: if a budget that is asked for does not fit the model, or there is no such model.
    """
    if options.random_weights:
        config: Any = random_config(options.model_path)
    elif options.model_path in SHAPES:
        raise ValueError(f"{options.model_path} names a shape, not a folder; add --random-weights to measure it.")
    else:
        config, _ = open_checkpoint(options.model_path, options.model_base)
    tower = vision_config(config)
    if tower is None:
        raise ValueError(
            f"{options.model_path}, a {config.model_type}, names no vision tower (mm_vision_tower in config.json); "
            "only models in LLaVA's terms are measured here."
        )
    decoder, vision = shapes_of(config, SimpleNamespace(**tower))
    if options.compression is None:
        scale = options.scale_to_depth
        usual = fitting(family_of(config), decoder, vision, USUAL_BUDGETS, scale)
        return {name: for_depth(name, decoder.layers, scale) for name in usual}
    names = [name.strip() for given in options.compression for name in given.split(",") if name.strip()]
    budgets = {name: for_depth(name, decoder.layers, options.scale_to_depth) for name in names}
    if not budgets:
        raise ValueError("--compression names no budget; give presets or YAML files, joined by commas.")
    for name, budget in budgets.items():
        _fitted(name, budget, config, decoder, vision, load.images)
    return budgets


def _document(options: argparse.Namespace, model: Any, costs: Sequence[Cost], load: BatchShape) -> dict[str, Any]:
    """Everything that was computed and measured."""
    rows = [dataclasses.asdict(cost) | {"decode_tokens_per_second": decode_rate(cost, load)} for cost in costs]
    return {
        "machine": measured_on(model.device),
        "model": options.model_path,
        "random_weights": options.random_weights,
        "dtype": str(model.dtype).removeprefix("torch."),
        "load": dataclasses.asdict(load),
        "budgets": rows,
    }


def _model(options: argparse.Namespace) -> Any:
    device = best_device(options.device)
    check_device(device)
    dtype = getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16"))
    if options.random_weights:
        return random_model(options.model_path, torch.device(device), dtype)
    return open_model(options.model_path, options.model_base, device=device, dtype=dtype).model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m llava.eval.cost",
        description="FLOPs, KV bytes, prefill latency, decoding speed and memory at several budgets, in one run. The "
        "first budget is what the others are compared with.",
    )
    parser.add_argument(
        "--model-path", "--model_path", type=MODEL, required=True, help=f"checkpoint folder, or {', '.join(SHAPES)}"
    )
    parser.add_argument("--model-base", "--model_base", type=MODEL, help="language model of a projector or LoRA folder")
    for switch, text in (
        (("--random-weights", "--random_weights"), "do not read weights: a model of that shape costs the same"),
        (("--activation-checkpointing", "--activation_checkpointing"), "a training step recomputes activations"),
    ):
        parser.add_argument(*switch, action="store_true", help=text)
    parser.add_argument(
        "--compression",
        nargs="+",
        help=f"presets or YAML files, joined by commas (default: those of {','.join(USUAL_BUDGETS)} that fit)",
    )
    add_scaling_flag(parser)
    for names, number, default, text in (
        (("--batch-size", "--batch_size"), count(), 1, "rows of a batch"),
        (("--text-tokens", "--text_tokens"), count(), 100, "of a row"),
        (("--images",), count(0), 1, "of a row"),
        (("--new-tokens", "--new_tokens"), count(2), 32, "of an answer"),
        (("--repeats",), count(), 5, "rounds, after one to warm up"),
    ):
        parser.add_argument(*names, type=checked_later(number), default=default, help=f"{text} (default: {default})")
    parser.add_argument(
        "--also",
        nargs="+",
        choices=("train", "tower"),
        default=[],
        help="measure a training step too (forward and backward of all but the vision tower), or the tower alone",
    )
    parser.add_argument("--device", help="cuda (also ROCm) or cpu; by default a GPU where there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--json", type=FILE_TO_WRITE, metavar="FILE", help="write everything to this file")
    return parser


if __name__ == "__main__":
    sys.exit(as_program(main))
