"""Which layers a training step computes again, as memory allows: what `--gradient_checkpointing auto` would choose."""

from __future__ import annotations

from llava.bench.cases import Setting
from llava.bench.inputs import answer_tokens
from llava.compression.config import CompressionConfig
from llava.cost.activations import Adapters, DeviceBatch, Precision, backward_peak, outside_bytes
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.memory import RESERVE
from llava.cost.seen_media import tower_of
from llava.cost.shapes import ModelShape
from llava.model.measured_work import shapes_of_model
from llava.train.checkpointing import ERROR, room_for

LEVELS = ("off", "before_drop", "on")
"""The quickest first; the last needs the least memory."""


def recomputed_layers(config: CompressionConfig, depth: int, level: str) -> int:
    """How many of the first layers are computed again."""
    before = config.t2v.layers[0] if config.t2v is not None else depth
    return {"off": 0, "before_drop": before, "on": depth}[level]


def level_by_memory(setting: Setting, config: CompressionConfig) -> str:
    """The quickest of `LEVELS` whose activations fit beside weights and gradients."""
    room = room_for(setting.model, setting.model.device)
    for level in LEVELS[:-1]:
        if level == "before_drop" and config.t2v is None:
            continue
        if room is None or step_bytes(setting, config, level) <= room:
            return level
    return LEVELS[-1]


def step_bytes(setting: Setting, config: CompressionConfig, level: str) -> float:
    """Estimated bytes of a step without an optimizer, every row as long as the longest."""
    model = setting.model
    decoder, vision = shapes_of_model(model.config, setting.medium)
    shape = ModelShape("the model", decoder, vision, tower_of(vision).layers)
    longest = max(setting.lengths)
    visual = visual_tokens_per_layer(config, decoder.layers, vision)
    batch = DeviceBatch(len(setting.lengths), longest, visual, answer_tokens(longest))
    value = model.dtype.itemsize
    precision = Precision(value, value, mask=1 if model.device.type == "cuda" else value)
    again = recomputed_layers(config, decoder.layers, level)
    kept = outside_bytes(shape, batch, precision)
    kept += backward_peak(decoder, batch, "all", Adapters(), precision, again)
    weights = list(model.parameters())
    held = sum(weight.numel() * weight.element_size() * (1 + weight.requires_grad) for weight in weights)
    return held + (1 + ERROR) * kept + RESERVE
