"""The estimate of a step's activations against what the allocator saw: every family, and every level of checkpointing.

By this estimate `--gradient_checkpointing auto` chooses, so it may be off by 15 %, which that adds to it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_vlms
import torch
from test_doctor_memory import CASES, Trial, shape_of
from torch.profiler import ProfilerActivity, profile

from llava import compress
from llava.cost.activations import Adapters, DeviceBatch, Precision, backward_peak, outside_bytes
from llava.cost.dimensions import DecoderShape
from llava.cost.seen_media import seen_by
from llava.cost.shapes import ModelShape
from llava.train.checkpointing import ERROR, checkpoint_before_drop

LEVELS = {"none": 0, "before_drop": 2, "all": 6}
AGAIN = pytest.mark.parametrize("level", LEVELS)
BUDGET = {"v2v": {"dominant": 5, "contextual": 3}, "t2v": {"layers": [2, 4], "keep": [0.5, 0.0]}}
RANK = 4


def peak(step: Callable[[], object], folder: Path) -> int:
    """Most bytes alive at once in a step, beyond what was there before it; gradients exist already."""
    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    live = most = 0
    for _, change in sorted((one["ts"], one["args"]["Bytes"]) for one in events if one.get("name") == "[memory]"):
        live += change
        most = max(most, live)
    return most


@AGAIN
@pytest.mark.parametrize(("case", "compression"), [("full", None), ("full", tiny.DUET), ("lora", tiny.DUET)], ids=str)
def test_peaks_of_llava_are_those_that_are_estimated(case: str, level: str, compression: Any, tmp_path: Path) -> None:
    """At another shape than the formulas were made at: few key heads, a narrow MLP, a long text that is all target."""
    trial = Trial(case, level != "none", compression, layers=6, heads=6, kv_heads=2, width=48, intermediate_size=96)
    trial.batch = trial._batch(rows=2, text=300, supervised=290)
    if level == "before_drop":
        for layer in trial.model.get_model().layers[2:]:
            layer.gradient_checkpointing = False
    shape, adapters = shape_of(trial.model), Adapters(RANK, CASES[case][2]) if case == "lora" else Adapters()
    expected = outside_bytes(shape, trial.batch, trial.precision)
    expected += backward_peak(shape.decoder, trial.batch, trial.trained, adapters, trial.precision, LEVELS[level])
    assert peak(lambda: trial.forward().backward(), tmp_path) == pytest.approx(expected, rel=ERROR)


@AGAIN
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision", *tiny_vlms.QWEN])
def test_peaks_of_other_families_are_those_that_are_estimated(family: str, level: str, tmp_path: Path) -> None:
    model: Any = compress(tiny_vlms.vlm(family, torch.float32), BUDGET).train()
    for parts, trained in ((model.vision_towers(), False), (model.projectors(), True)):
        for part in parts:
            part.requires_grad_(trained)
    if level != "none":
        model.activation_checkpointing_enable()
    if level == "before_drop":
        checkpoint_before_drop(model)
    ids, shown = tiny_vlms.prompt(family, 3, dtype=torch.float32)
    inputs = tiny_vlms.batch([(ids + [3 + number % 50 for number in range(150)], shown)] * 4, "right", answers=True)
    inputs["query_mask"] = inputs["attention_mask"].masked_fill(inputs["labels"] != -100, 0)
    layouts = model(**inputs, output_layouts=True).layouts
    layers = [last - first for first, last in pairwise((0, 2, 4, 6))]
    visual = [layout.visual[0] for layout, count in zip(layouts, layers, strict=True) for _ in range(count)]
    config = model.config.to_dict()
    count = shown[0].count
    seen = dataclasses.replace(seen_by(config), units=1, positions=4 * count, found=count, plain=count, windows=None)
    shape = ModelShape("tiny", DecoderShape.of(model.decoder.config), seen, seen.tower.layers)
    batch = DeviceBatch(4, layouts[0].lengths[0] - visual[0], tuple(visual), supervised=2)
    precision = Precision(4, 4, 4)
    expected = outside_bytes(shape, batch, precision)
    expected += backward_peak(shape.decoder, batch, "all", Adapters(), precision, LEVELS[level])
    assert peak(lambda: model(**inputs).loss.backward(), tmp_path) == pytest.approx(expected, rel=ERROR)
