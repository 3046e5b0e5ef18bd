"""What budgets of visual tokens cost a model: computed, realised and measured side by side, in one interleaved run.

    python -m llava.eval.cost --model-path CHECKPOINT --compression none,duet-192,duet-64 --batch-size 8
    python -m llava.eval.cost --model-path llava-1.5-7b --random-weights --device cuda
    python -m llava.eval.cost --model-path LLAVA_NEXT --image-size 1008x336 --compression none,next-640

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
from typing import Any

import torch

from llava.checkpoints.opening import open_model, resolve
from llava.checkpoints.processors import processor_of
from llava.common.image_limits import is_lack_of_memory
from llava.common.json_files import write_json
from llava.common.number_flags import checked_later, count, require_at_least
from llava.common.outputs import require_apart, require_folder
from llava.common.outside_files import in_words
from llava.common.path_flags import FILE_TO_WRITE, MODEL
from llava.common.presets import family_of
from llava.common.program import as_program
from llava.compression.config import CompressionConfig
from llava.cost.flops import kv_bytes, prefill_flops, training_passes, visual_tokens_per_layer
from llava.cost.machine import measured_on
from llava.cost.medium_flags import add_medium_flags, asked_medium
from llava.cost.overview import fitting
from llava.cost.scaling import add_scaling_flag, for_depth
from llava.cost.seen_media import Vision, usual_medium
from llava.cost.shapes import DecoderShape
from llava.cost.timing import interleaved, timed, wait_for
from llava.data.families import ModelInputs
from llava.eval.runner.exit_status import tell
from llava.eval.runner.flags import DTYPES
from llava.eval.tables.costs import BatchShape, Cost, decode_rate, further_lines, table
from llava.inference.engine import Engine
from llava.inference.loading_flags import best_device, check_device
from llava.inference.made_batches import made_batch, realised
from llava.model.cache_name import cache_of
from llava.model.compressed_model import CompressedModel
from llava.model.measured_work import decode, prefill, row_flops, shapes_of_model, tower_run, train_step
from llava.model.random_weights import SHAPES, random_config, random_model
from llava.model.staged_cache import key_value_bytes

USUAL_BUDGETS = ("none", "duet-192", "duet-128", "duet-64")
USUAL_OF_FAMILIES = {
    "llava-next": ("none", "next-640", "next-320", "next-160"),
    "video-llava": ("none", "video-960", "video-136"),
    "qwen2.5-vl": ("none", "qwen-640", "qwen-320", "qwen-160"),
}
_TOWERS = ("vision", "image", "video")


def measure(
    model: Any, budgets: dict[str, CompressionConfig], load: BatchShape, repeats: int, inputs: ModelInputs | None = None
) -> list[Cost]:
    """Run every budget in turn, `repeats` rounds after one to warm up.

    Args:
        model: model of any family.
        budgets: by name.
        load: what is asked of it.
        repeats: rounds.
        inputs: as in `made_batch`.

    Raises:
        ValueError: if a budget does not fit the model.
        RuntimeError: if a cache does not take the bytes that were computed.
    """
    require_at_least("repeats", repeats, 1)
    load = dataclasses.replace(load, medium=realised(inputs, load.medium))
    fitted = {name: model.fitted(config) for name, config in budgets.items()}
    costs = {name: _computed(name, config, model, load) for name, config in fitted.items()}
    batch = made_batch(model, inputs, load.rows, load.text_tokens, load.images, load.medium)
    runs = {name: _Run(model, batch, load, fitted[name], cost) for name, cost in costs.items()}
    interleaved(runs, repeats, model.device)
    for cost in costs.values():
        del cost.prefill_seconds[0], cost.decode_seconds[0]  # the warm-up
    return list(costs.values())


def _computed(name: str, config: CompressionConfig, model: Any, load: BatchShape) -> Cost:
    decoder, vision = shapes_of_model(model.config, load.medium, load.images)
    tokens = _fitted(name, config, model.config, decoder, vision, load.images)
    flops = prefill_flops(tokens, load.text_tokens, decoder, vision, load.images)
    return Cost(name, tokens, flops, load.rows * kv_bytes(tokens, load.text_tokens, decoder, model.dtype.itemsize))


def _fitted(
    name: str, config: CompressionConfig, model: Any, decoder: DecoderShape, vision: Vision, images: int
) -> tuple[int, ...]:
    """Visual tokens of a row in each layer.

    Raises:
        ValueError: if the budget does not fit the model.
    """
    try:
        config.check_made_for(model, decoder.layers)
        return visual_tokens_per_layer(config, decoder.layers, vision, images)
    except ValueError as error:
        raise ValueError(f"Budget {name!r} does not fit this model: {error}") from error


@dataclass(frozen=True)
class _Run:
    """One prefill and the decoding after it, each timed."""

    model: Any
    batch: dict[str, Any]
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
        self._compare(key_value_bytes(cache_of(output)), self.load.text_tokens, "the prefill")
        self.cost.decode_seconds.append(timed(partial(decode, self.model, output, answer, self.config), device))
        self._compare(key_value_bytes(cache_of(output)), self.load.text_tokens + answer, "the answer")
        if device.type == "cuda":
            self.cost.peak_bytes = max(self.cost.peak_bytes or 0, torch.cuda.max_memory_allocated(device))

    def _compare(self, realised: int, text_tokens: int, when: str) -> None:
        decoder = DecoderShape.of(self.model.config.get_text_config())
        computed = kv_bytes(self.cost.visual_tokens, text_tokens, decoder, self.model.dtype.itemsize)
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
    inputs: ModelInputs | None = None,
) -> None:
    """Note seconds and FLOPs of training steps, forward and backward of all but the vision tower, in the costs.

    Args:
        model: model of any family; what it trains stays chosen.
        budgets: compressions by name.
        costs: costs of these budgets, in turn.
        load: rows of a batch; the last fifth of each row's text is its answer.
        repeats: rounds, after one to warm up.
        again: whether activations are computed again in the backward pass.
        inputs: as in `made_batch`.
    """
    model.train().requires_grad_(True)
    for tower in model.vision_towers():
        tower.requires_grad_(False)
    for projector in model.projectors():  # which may lie inside a tower
        projector.requires_grad_(True)
    if again:
        model.activation_checkpointing_enable()
    batch = made_batch(model, inputs, load.rows, load.text_tokens, load.images, load.medium, labels=True)
    runs = {name: partial(train_step, model, batch, config) for name, config in budgets.items()}
    passes = training_passes(True, again)
    for cost, seconds in zip(costs, interleaved(runs, repeats, model.device).values(), strict=True):
        cost.train_seconds = seconds
        cost.train_flops = row_flops(model, budgets[cost.budget], load.text_tokens, load.images, passes, load.medium)
    model.zero_grad(set_to_none=True)


@torch.no_grad()
def measure_tower(
    model: Any,
    budgets: dict[str, CompressionConfig],
    costs: Sequence[Cost],
    load: BatchShape,
    repeats: int,
    inputs: ModelInputs | None = None,
) -> None:
    """Note seconds of the vision tower on the images of a batch, with the V2V of each budget, in the costs.

    Of models that are not in LLaVA's own format the projector is measured with it.
    """
    batch = made_batch(model, inputs, load.rows, load.text_tokens, load.images, load.medium)
    runs = {name: tower_run(model, batch, model.fitted(config)) for name, config in budgets.items()}
    for cost, seconds in zip(costs, interleaved(runs, repeats, model.device).values(), strict=True):
        cost.tower_seconds = seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        if "tower" in options.also and not options.images:
            raise ValueError("--also tower measures the vision tower, but --images is 0; give at least 1.")
        require_at_least("repeats", options.repeats, 1)
        require_folder("--json", options.json)
        require_apart({"--json": options.json}, [options.model_path, options.model_base, *(options.compression or [])])
        config = _config(options)
        load = _load(options, config.to_dict())
        budgets = _budgets(options, load, config)
        model = _model(options)
        inputs = _inputs(options, model)
        load = dataclasses.replace(load, medium=realised(inputs, load.medium))
        costs = measure(model, budgets, load, options.repeats, inputs)
        if "tower" in options.also:
            measure_tower(model, budgets, costs, load, options.repeats, inputs)
        if "train" in options.also:
            measure_training(model, budgets, costs, load, options.repeats, options.activation_checkpointing, inputs)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if is_lack_of_memory(error):
            tell(f"Out of memory; lower --batch-size or --text-tokens: {error}")
            return 1
        tell(in_words(error))
        return 2
    print(measured_on(model.device))
    print(f"{options.model_path}, {str(model.dtype).removeprefix('torch.')}; {load.sentence()}")
    print("\n".join([table(costs, load), *further_lines(costs)]))
    if options.json:
        write_json(options.json, _document(options, model, costs, load), indent=1)
    return 0


def _config(options: argparse.Namespace) -> Any:
    """The configuration of the model, without its weights.

    Raises:
        ValueError: if there is no such model.
    """
    if options.random_weights:
        return random_config(options.model_path)
    if options.model_path in SHAPES:
        raise ValueError(f"{options.model_path} names a shape, not a folder; add --random-weights to measure it.")
    checkpoint, base = resolve(options.model_path, options.model_base)
    config: Any = checkpoint.config if checkpoint.config is not None or base is None else base.config
    if not hasattr(config, "vision_config") and not any(config.to_dict().get(f"mm_{kind}_tower") for kind in _TOWERS):
        raise ValueError(
            f"{options.model_path}, a {config.model_type}, names no vision tower (mm_vision_tower in config.json), so "
            "there is nothing to compress; give a LLaVA or a model of another family."
        )
    return config


def _load(options: argparse.Namespace, config: dict[str, Any]) -> BatchShape:
    """What the flags ask of a model of that configuration."""
    usual = usual_medium(config)
    numbers = options.batch_size, options.text_tokens, options.images, options.new_tokens
    medium = asked_medium(options, usual)
    alike = family_of(config) == "llava-1.5"  # every image is of one size to it
    return BatchShape(*numbers, usual if medium is None and not alike else medium)


def _budgets(options: argparse.Namespace, load: BatchShape, config: Any) -> dict[str, CompressionConfig]:
    """What is asked for, or those of `USUAL_BUDGETS` that fit; found out before weights are made or read.

    Raises:
        ValueError: if a budget that is asked for does not fit the model.
    """
    decoder, vision = shapes_of_model(config, load.medium, load.images)
    if options.compression is None:
        scale, family = options.scale_to_depth, family_of(config)
        usual = fitting(family, decoder, vision, USUAL_OF_FAMILIES.get(family, USUAL_BUDGETS), scale)
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
        "load": {name: value for name, value in dataclasses.asdict(load).items() if value is not None},
        "budgets": rows,
    }


def _model(options: argparse.Namespace) -> Any:
    device = best_device(options.device)
    check_device(device)
    dtype = getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16"))
    if options.random_weights:
        return random_model(options.model_path, torch.device(device), dtype)
    return open_model(options.model_path, options.model_base, device=device, dtype=dtype).model


def _inputs(options: argparse.Namespace, model: Any) -> ModelInputs | None:
    """What makes the inputs of a model that is not in LLaVA's own format; None of one that is."""
    if not isinstance(model, CompressedModel):
        return None
    opened = resolve(options.model_path, options.model_base)
    processor, tokenizer = processor_of(model.config, *(one.folder for one in opened if one is not None))
    return Engine(model, tokenizer, processor).inputs


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
        help="presets or YAML files, joined by commas (default: none and those of the model's family that fit, such as "
        f"{','.join(USUAL_BUDGETS)})",
    )
    add_scaling_flag(parser)
    add_medium_flags(parser)
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
