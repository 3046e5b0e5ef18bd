"""Nothing in a step waits for the device: not the forward pass, not the backward pass, not the trainer around them.

On any machine on a device without numbers (`without_data`), on a GPU on the GPU, which says itself when it is waited
for. Frozen or trained, compressed or not; every family, with what its collator makes on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import tiny_vlms
import torch
from tiny import chat, collate, pixels, tiny_llava
from tiny_vlms import CUTTING, FAMILIES
from without_data import NothingWaits

from llava import compress
from llava.model.crops import Crops
from llava.model.host_inputs import HostInputs

NEEDS = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"))
DEVICES = ["meta", pytest.param("cuda", marks=NEEDS)]
ON = pytest.mark.parametrize("device", DEVICES)
T2V = {"layers": [2, 4], "keep": [0.5, 0.25]}
BUDGETS: dict[str, dict[str, Any]] = {
    "none": {},
    "both": {"v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2}, "t2v": T2V | {"queries": "text"}},
    "before": {
        "v2v": {"dominant": 5, "contextual": 3, "clusters": "neighbours", "score": "received"},
        "t2v": T2V | {"scored_by": "before", "positions": "original", "queries": "salient"},
    },
    "chance": {
        "v2v": {"dominant": 5, "contextual": 3, "clusters": "uniform", "score": "uniform"},
        "t2v": T2V | {"score": "random", "keep": [0.5, 0.0]},
    },
}
STOCK = {
    "llava_next": ["pack_image_features"],
    "llava_onevision": ["pack_image_features", "get_image_features"],
}
"""Functions of transformers that wait where V2V is off and its own code packs an image's crops: they tell the device
how long each image has become, by a tensor of Python numbers."""
ROWS = [chat(1), chat(2, (0,)), chat(3, (2, 1)), chat(4, (5,))]


@contextlib.contextmanager
def nothing_waits(device: str, allowed: list[str] | None = None) -> Iterator[None]:
    """Fail on what would wait for the device."""
    if device == "meta":
        with NothingWaits(allowed or ()):
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn" if allowed else "error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on(device: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch where a data loader has brought it; what has no `to` stays on the host."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        return value.to(device) if hasattr(value, "to") else value

    return {name: moved(value) for name, value in inputs.items()}


def family_batch(family: str, answers: bool, side: str) -> dict[str, Any]:
    kinds = ("image", "video") if family in ("video_llava", "llava_onevision", *tiny_vlms.QWEN) else ("image",)
    prompts = [tiny_vlms.prompt(family, seed, kinds, torch.float32) for seed in (1, 2)]
    made = tiny_vlms.batch(prompts, side, answers)
    if answers:
        made["query_mask"] = torch.where(made["labels"] == -100, made["attention_mask"], 0)
    return made | {"host_inputs": HostInputs.of(made)}


@ON
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_training_step_of_no_family_waits(family: str, budget: str, device: str) -> None:
    model: Any = compress(tiny_vlms.vlm(family, torch.float32), BUDGETS[budget]).to(device).train()
    inputs = on(device, family_batch(family, answers=True, side="right"))
    allowed = STOCK.get(family) if BUDGETS[budget].get("v2v") is None else None
    with nothing_waits(device, allowed):
        model(**inputs, output_layouts=True).loss.backward()
    assert model.lm_head.weight.grad is not None


def cut_image(number: int) -> Crops:
    seen = tiny_vlms.look(tiny_vlms.OWN_NEXT, "image", number, torch.float32).inputs
    return Crops(seen["images"][0], seen["image_sizes"][0])


def native_batch(cutting: bool, labels: bool) -> tuple[dict[str, Any], list[Any]]:
    """A batch of LLaVA's own without its plan, and its media as a data worker has them."""
    count = sum(row.images for row in ROWS)
    made: dict[str, Any] = collate(ROWS, labels=labels)
    if not cutting:
        return made | {"images": pixels(count, dtype=torch.float32)}, list(pixels(count, dtype=torch.float32))
    media = [cut_image(number) for number in range(count)]
    return made | {"images": [one.pixels for one in media], "image_sizes": [one.size for one in media]}, media


@ON
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("cutting", [False, True], ids=["llava", "next"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_a_training_step_of_our_own_llava_waits_for_nothing(
    cutting: bool, budget: str, device: str, checkpointing: bool
) -> None:
    model = tiny_llava(compression=BUDGETS[budget], dtype=torch.float32, **(CUTTING if cutting else {}))
    batch, media = native_batch(cutting, labels=True)
    batch["plan"] = model.plan_settings().plan(batch, media)
    model = model.to(device).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    inputs = on(device, batch)
    with nothing_waits(device):
        model(**inputs, num_items_in_batch=inputs["labels"].ne(-100).sum()).loss.backward()
    assert model.lm_head.weight.grad is not None
