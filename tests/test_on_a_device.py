"""What could differ on a GPU: choices, cached decoding in 16 and 32 bits, gradients. Each runs on the CPU as well.

Expected values come from the CPU in float64, which no device has a say in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import tiny_vlms
import torch
from tiny import chat, collate, images_of, pixels, tiny_llava

from llava import compress

NEEDS = (pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"))
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS)]
BUDGETS = {"duet": tiny.DUET, "text": tiny.T2V_ONLY, "to-zero": tiny.TO_ZERO, "before": tiny.BEFORE}
BUDGETS["uniform"] = {
    "v2v": tiny.DUET["v2v"] | {"contextual": 0, "score": "uniform"},
    "t2v": tiny.DUET["t2v"] | {"score": "uniform"},
}
ROWS = [chat(1), chat(2, (0,)), chat(3, (2, 1)), chat(4, (5,))]


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Products and convolutions in full float32, whatever was chosen before."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        yield
        torch.set_float32_matmul_precision(before)


def on(device: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(device) for name, value in inputs.items()}


def native(budget: str, dtype: torch.dtype, device: str, rows=ROWS, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The project's own model, and a padded batch with its images."""
    model = tiny_llava(compression=BUDGETS[budget], dtype=dtype).to(device)
    images = pixels(sum(row.images for row in rows)).to(dtype)
    return model, on(device, collate(rows, **options) | {"images": images})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", BUDGETS)
@torch.no_grad()
def test_no_choice_in_float32_differs_from_float64_on_a_cpu(budget: str, device: str) -> None:
    kept, merged = [], []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        model, inputs = native(budget, dtype, where)
        layouts = model(**inputs).layouts
        kept.append([layout.visual_index.cpu().tolist() for layout in layouts])
        if model.compression.v2v is not None:
            result = model.get_vision_tower().merge(inputs["images"], model.compression.v2v)
            merged.append((result.roles.cpu().tolist(), result.target.cpu().tolist()))
    assert kept[0] == kept[1]
    assert merged == [] or merged[0] == merged[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", tiny_vlms.FAMILIES)
@torch.no_grad()
def test_no_choice_differs_in_the_families_of_transformers(family: str, device: str) -> None:
    config = {
        "v2v": {"dominant": 5, "contextual": 3, "cluster_width": 2},
        "t2v": {"layers": [2, 4], "keep": [0.5, 0.25]},
    }
    kind = "video" if family == "video_llava" else "image"
    kept = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        model = compress(tiny_vlms.vlm(family, dtype).to(where), config)
        inputs = tiny_vlms.batch([tiny_vlms.prompt(family, seed, (kind,), dtype) for seed in (1, 2)])
        layouts = model(**on(where, inputs), output_layouts=True).layouts
        kept.append([layout.visual_index.cpu().tolist() for layout in layouts])
    assert kept[0] == kept[1]


PRECISIONS = pytest.mark.parametrize(
    ("dtype", "budget", "close"),
    [(torch.float32, "before", 2e-4), (torch.float32, "duet", 2e-4), (torch.bfloat16, "uniform", 0.3)],
)
"""In 16 bits only choices that no rounding can change: otherwise two right answers differ in what they saw."""


@pytest.mark.parametrize("device", DEVICES)
@PRECISIONS
@torch.no_grad()
def test_cached_decoding_equals_recomputing_on_a_device(
    dtype: torch.dtype, budget: str, close: float, device: str
) -> None:
    """Each new token behind the cache of a padded batch against the row run again, alone, with its new tokens."""
    rows = [chat(1, answered=False), chat(3, (2, 1), answered=False), chat(2, (0,), answered=False)]
    new = torch.randint(3, tiny.VOCABULARY, (len(rows), 4), generator=torch.Generator().manual_seed(1))
    model, inputs = native(budget, dtype, device, rows, side="left")
    cache = model(**inputs, use_cache=True).past_key_values
    cached = [model(new[:, [step]].to(device), past_key_values=cache).logits[:, 0] for step in range(4)]
    own = images_of(rows, inputs["images"])
    for number, (row, answer) in enumerate(zip(rows, new.tolist(), strict=True)):
        alone = model(**on(device, collate([row.then(*answer)])), images=own[number] if row.images else None)
        got = torch.stack([step[number] for step in cached])
        torch.testing.assert_close(got.float(), alone.logits[0, -4:].float(), atol=close, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@PRECISIONS
@torch.no_grad()
def test_generation_in_a_batch_equals_generation_alone_on_a_device(
    dtype: torch.dtype, budget: str, close: float, device: str
) -> None:
    rows = [chat(1, answered=False), chat(3, (2, 1), answered=False)]
    model, inputs = native(budget, dtype, device, rows, side="left")
    options = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    own = images_of(rows, inputs["images"])
    together = model.generate(inputs.pop("input_ids"), **inputs, **options)
    for number, row in enumerate(rows):
        batch = on(device, collate([row]))
        alone = model.generate(batch.pop("input_ids"), images=own[number], **batch, **options)
        for step in range(5):
            got, expected = together.logits[step][number].float(), alone.logits[step][0].float()
            torch.testing.assert_close(got, expected, atol=close, rtol=0)
            if together.sequences[number, step] != alone.sequences[0, step]:
                assert dtype == torch.bfloat16, "close logits, another best token: only 16 bits may do that"
                break  # what follows has another past


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_step_with_checkpointing_has_the_gradients_of_float64_on_a_cpu(device: str) -> None:
    gradients = []
    for dtype, where in ((torch.float64, "cpu"), (torch.float32, device)):
        model, inputs = native("duet", dtype, where, labels=True)
        model.train()
        if dtype == torch.float32:
            model.activation_checkpointing_enable()
        model(**inputs).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name].cpu().double(), expected, atol=2e-4, rtol=2e-3, msg=name)
