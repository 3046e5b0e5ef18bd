"""Which decoder layers compute their activations again in the backward pass, chosen by memory where that is asked for.

`--gradient_checkpointing auto` takes the first of these that fits the device: none, the layers before the first drop,
all. Layers behind a drop have fewer tokens to keep, and computing a layer again costs a quarter of its step.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llava.common.presets import family_of
from llava.cost.activations import (
    Adapters,
    DeviceBatch,
    Precision,
    backward_peak,
    outside_bytes,
    tower_pass,
    trained_tower,
)
from llava.cost.dimensions import DecoderShape
from llava.cost.flops import tokens_per_layer
from llava.cost.machine import device_name, probe_system
from llava.cost.memory import FLOAT32, GIB, RESERVE, RecipeSetting, ZeroStage, peak_memory
from llava.cost.recipes import Recipe, Trained
from llava.cost.seen_media import seen_by
from llava.cost.shapes import ModelShape
from llava.data.dataset import LazySupervisedDataset
from llava.model.collectives import of_all_ranks
from llava.model.parts import bytes_of
from llava.train.adapters import compute_dtype
from llava.train.arguments import TrainingArguments
from llava.train.facts import RunFacts
from llava.train.longest_rows import LongestRows
from llava.train.run_summary import count_parameters

logger = logging.getLogger(__name__)

LEVELS = ("none", "before_drop", "all")
"""The quickest first; the last needs the least memory."""
_WORDS = {"none": "no layer", "before_drop": "the layers before the first drop", "all": "all layers"}
ERROR = 0.15
"""How far the estimate of activations may be off, to which it is tested; so much is added to it."""


@dataclass(frozen=True)
class Choice:
    """What was chosen and why.

    Attributes:
        level: one of `LEVELS`.
        needs: bytes of one device by level, for the largest batch of the data.
        room: bytes that there are for them; None where the device does not say.
        rows, tokens: rows of that batch, and positions of each in the first layer.
    """

    level: str
    needs: Mapping[str, float]
    room: int | None
    rows: int
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether even that fits, as far as is known."""
        return self.room is None or self.needs[self.level] <= self.room


def settle_checkpointing(
    model: Any, dataset: LazySupervisedDataset, args: TrainingArguments, earlier: RunFacts | None
) -> Choice | None:
    """Replace `auto` among the arguments by what it chooses, or chose when the run began. All ranks must call it.

    Args:
        model: model whose trained weights are chosen, without adapters.
        dataset: training data.
        args: arguments of the run; changed in place.
        earlier: facts of the run that is gone on with, or has finished; None for a new one.

    Returns:
        the choice; None where nothing was to be chosen.
    """
    if args.checkpointed_layers != "auto":
        return None
    if earlier is not None:
        level = level_of(earlier.arguments)
        logger.info("Activation checkpointing: %s, as when the run began.", _WORDS[level])
        _set(args, level)
        return None
    chosen = choose(model, dataset, args)
    careful = max(of_all_ranks([chosen.level]), key=LEVELS.index)
    _say(chosen, careful, args)
    _set(args, careful)
    return replace(chosen, level=careful)


def level_of(arguments: Mapping[str, Any]) -> str:
    """The level that arguments of a run stand for, by name; those of versions before it could be chosen, too."""
    if not arguments.get("activation_checkpointing"):
        return "none"
    return "before_drop" if arguments.get("checkpointed_layers") == "before_drop" else "all"


def checkpoint_before_drop(model: Any) -> None:
    """Let the layers behind the first drop keep their activations, where all layers compute them again."""
    t2v, layers = model.compression.t2v, model.decoder.layers
    first = len(layers) if t2v is None else t2v.layers[0]
    for layer in layers[first:]:
        layer.gradient_checkpointing = False  # of transformers' GradientCheckpointingLayer, on this instance


def choose(model: Any, dataset: LazySupervisedDataset, args: TrainingArguments) -> Choice:
    """The first level whose estimate for the largest batch fits the memory of this rank's device."""
    decoder = DecoderShape.of(model.decoder.config)
    batch, rows, tokens = _largest_batch(model, dataset, args, decoder.layers)
    setting, stage = _setting(model, args), _stage(args)
    levels = [level for level in LEVELS if level != "before_drop" or model.compression.t2v is not None]
    needs = {level: _need(model, level, setting, stage, batch, args) for level in levels}
    room = room_for(model, args.device)
    fitting = [level for level in levels if room is not None and needs[level] <= room]
    return Choice(fitting[0] if fitting else "all", needs, room, rows, tokens)


def _need(
    model: Any, level: str, setting: RecipeSetting, stage: ZeroStage, batch: DeviceBatch, args: TrainingArguments
) -> float:
    """Bytes of one device: what is held for the whole step, and the largest of its moments."""
    shape, recipe = setting.shape, setting.recipe
    compute = compute_dtype(args).itemsize
    stream = FLOAT32 if stage.zero == 0 and recipe.trained == "all" else compute
    precision = Precision(compute, stream, mask=1 if args.device.type == "cuda" else compute)
    adapters = Adapters(recipe.lora_rank, recipe.lora_dropout)
    first = model.compression.t2v.layers[0] if level == "before_drop" else 0
    again = {"none": 0, "before_drop": first, "all": shape.decoder.layers}[level]
    step = outside_bytes(shape, batch, precision)
    step += backward_peak(shape.decoder, batch, recipe.trained, adapters, precision, again)
    if recipe.trains_tower:
        step += trained_tower(shape, batch.rows, compute, checkpointing=level != "none")
    held = peak_memory(setting, stage, batch)
    states = held.states
    if stage.zero == 0:  # what the weights take is known
        states += bytes_of(model.parameters()) - held.weights - held.tower
    return states + max((1 + ERROR) * step, tower_pass(shape, batch.rows, compute), held.update)


def _largest_batch(
    model: Any, dataset: LazySupervisedDataset, args: TrainingArguments, layers: int
) -> tuple[DeviceBatch, int, int]:
    """The largest batch of one device that the data makes, its rows, and positions of a row in the first layer."""
    longest = LongestRows.of(dataset)
    t2v = model.compression.t2v
    seen = tokens_per_layer(t2v, longest.visual, layers)
    of_layers = [max(longest.text_alone, longest.beside_media + visual) for visual in seen]
    text = min(of_layers)
    rows = args.per_device_train_batch_size
    if args.max_tokens_per_device is not None:
        rows = max(1, args.max_tokens_per_device // max(of_layers))
    batch = DeviceBatch(rows, text, tuple(count - text for count in of_layers), min(longest.labels, text))
    return batch, rows, max(of_layers)


def _setting(model: Any, args: TrainingArguments) -> RecipeSetting:
    """The run as `llava.cost.memory` has it."""
    counts = {name: held["all"] for name, held in count_parameters(model).items()}
    towers, projector = counts.pop("vision_tower", 0), counts.pop("mm_projector", 0)
    config = model.config.to_dict()
    seen = seen_by(config)
    trains_language_model = any(weight.requires_grad for weight in model.decoder.layers.parameters())
    trained: Trained = "lora" if args.lora_enable else "all" if trains_language_model else "projector"
    inside = {id(weight) for part in model.projectors() for weight in part.parameters()}
    tower_weights = [weight for tower in model.vision_towers() for weight in tower.parameters()]
    shape = ModelShape(
        "the model",
        DecoderShape.of(model.decoder.config),
        seen,
        seen.tower.layers,
        counted=(sum(counts.values()), projector, towers),
        family=family_of(config),
    )
    recipe = Recipe(
        "this run",
        trained,
        args.per_device_train_batch_size,
        args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps,
        _stage(args).zero,
        bits=args.bits,
        lora_rank=args.lora_r if args.lora_enable else 0,
        lora_dropout=args.lora_dropout if args.lora_enable else 0.0,
        double_quant=args.double_quant,
        trains_tower=any(weight.requires_grad for weight in tower_weights if id(weight) not in inside),
    )
    per_host = int(os.environ.get("LOCAL_WORLD_SIZE") or args.world_size)
    return RecipeSetting(recipe, shape, model.compression, args.world_size, per_host, args.per_device_train_batch_size)


def _stage(args: TrainingArguments) -> ZeroStage:
    """How the states are spread over devices."""
    if not args.deepspeed:
        return ZeroStage("0", 0)
    config = args.hf_deepspeed_config
    zero = int(config.get_value("zero_optimization.stage", 0) or 0)
    offload = config.get_value("zero_optimization.offload_optimizer.device", "none") == "cpu"
    return ZeroStage(str(zero), zero, offload and zero == 3)


def room_for(model: nn.Module, device: torch.device) -> int | None:
    """Bytes that this process may use: what is free, and what it holds already; None where the device does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    free_memory = probe_system(".").memory_free
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return None if free_memory is None else int(free_memory / processes + bytes_of(model.parameters()))


def _set(args: TrainingArguments, level: str) -> None:
    args.activation_checkpointing = level != "none"
    args.checkpointed_layers = "before_drop" if level == "before_drop" else "all"


def _say(chosen: Choice, level: str, args: TrainingArguments) -> None:
    """Log the choice with what it rests on."""
    needs = ", ".join(f"{_WORDS[name]} {need / GIB:.1f}" for name, need in chosen.needs.items())
    room = "how much is free it does not say" if chosen.room is None else f"there are {chosen.room / GIB:.1f}"
    ranks = f", as the most careful of {args.world_size} ranks asks" if args.world_size > 1 else ""
    logger.info(
        "Activation checkpointing: %s%s. GiB that a device needs for the largest batch of the data (%d rows of %d "
        "tokens), by which layers are computed again: %s (%.0f %% added to what is estimated for activations, %.0f GiB "
        "reserved); on %s %s.",
        _WORDS[level],
        ranks,
        chosen.rows,
        chosen.tokens,
        needs,
        100 * ERROR,
        RESERVE / GIB,
        device_name(args.device),
        room,
    )
    if not chosen.fits:
        logger.warning(
            "Even with all layers computed again the largest batch may not fit the device; lower "
            "--per_device_train_batch_size (with more --gradient_accumulation_steps), or give --max_tokens_per_device."
        )
