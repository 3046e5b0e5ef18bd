"""Nothing in a step waits for the device: not the forward pass, not the backward pass, not the trainer around them.

On any machine on a device without numbers (`without_data`), on a GPU on the GPU, which says itself when it is waited
for. Frozen or trained, compressed or not; every family, with what its collator makes on the host.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_vlms
import torch
from accelerate.utils import send_to_device
from tiny import chat, collate, pixels, tiny_llava
from tiny_llava import flags, write_assets
from tiny_text import llama
from tiny_video import FRAMES, SIDE, video_llava
from tiny_video import pixels as pixels_of
from tiny_vlms import CUTTING, FAMILIES
from without_data import DEVICE, NothingWaits, WaitsForTheDeviceError

from llava import compress
from llava.constants import IMAGE_TOKEN_INDEX
from llava.data.collator import REPORTED
from llava.data.families.video_llava import VideoLlavaInputs
from llava.model.crops import Crops
from llava.model.host_inputs import HostInputs
from llava.model.placeholders import VisualSpan
from llava.model.splice import plan_splice
from llava.train.arguments import parse_arguments
from llava.train.building import choose_trained, load, make_data
from llava.train.trainer import LlavaTrainer

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
        with NothingWaits(allowed or ()) as mode:
            yield
        assert mode.used == set(allowed or ()), "a list of exceptions holds what is needed and no more"
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


def model_of(family: str, device: str) -> Any:
    model = tiny_vlms.vlm(family, torch.float32)
    if device == "meta" and family == "qwen3_vl_moe":
        model.set_experts_implementation("batched_mm")  # the grouped products take bfloat16 alone there
    return model


FEW = ("llava", "qwen2_5_vl", "llava_onevision")
"""Families that are tried with every budget: one of CLIP's towers, one of Qwen's, one of SigLIP's that pools."""


@ON
@pytest.mark.parametrize(
    ("family", "budget"),
    [(family, budget) for family in FAMILIES for budget in BUDGETS if family in FEW or budget in ("none", "both")],
)
def test_a_training_step_of_no_family_waits(family: str, budget: str, device: str) -> None:
    model: Any = compress(model_of(family, device), BUDGETS[budget]).to(device).train()
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
@pytest.mark.parametrize("cutting", [False, True], ids=["llava", "next"])
@pytest.mark.parametrize(("budget", "checkpointing"), [*((budget, False) for budget in BUDGETS), ("both", True)])
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


@ON
@pytest.mark.parametrize("budget", ["none", "both"])
def test_a_training_step_with_videos_waits_for_nothing(budget: str, device: str) -> None:
    model = video_llava(compression=BUDGETS[budget], dtype=torch.float32)
    made = VideoLlavaInputs(model.config, llama(), model.processors(), "v1")
    video, image = (pixels_of(*shape, dtype=torch.float32) for shape in ((FRAMES, SIDE, SIDE), (SIDE, SIDE)))
    samples = [
        made.conversation([made.taught("<video>\nWhat?", {"video"}), "red three"], [video]),
        made.conversation([made.taught("See <image>", {"image"}), "no"], [image]),
        made.conversation(["How many?", "blue"], []),
    ]
    batch = made.collator(SIDE, model.plan_settings())(samples)
    inputs = on(device, {name: value for name, value in batch.items() if name not in REPORTED})
    model = model.to(device).train()
    with nothing_waits(device):
        model(**inputs).loss.backward()
    assert model.lm_head.weight.grad is not None


@ON
@pytest.mark.parametrize("family", [*FAMILIES, *tiny_vlms.NATIVE])
@torch.no_grad()
def test_a_padded_prefill_waits_for_nothing(family: str, device: str) -> None:
    """Rows of different lengths, padded on the left as for answers to follow; the cache is filled."""
    if family in FAMILIES:
        model: Any = compress(model_of(family, device), BUDGETS["both"])
        batch = family_batch(family, answers=False, side="left")
    else:
        cutting = family == tiny_vlms.OWN_NEXT
        model = tiny_llava(compression=BUDGETS["both"], dtype=torch.float32, **(CUTTING if cutting else {}))
        batch, media = native_batch(cutting, labels=False)
        spans = [VisualSpan(torch.empty(n, 0), 1) for one in media for n in model.plan_settings().counts(one)]
        asked = {name: batch[name] for name in ("query_mask",)}
        batch["plan"] = plan_splice(
            batch["input_ids"],
            batch["attention_mask"],
            {IMAGE_TOKEN_INDEX: spans},
            **asked,
            queries="text",
            padding_side="left",
        )
    inputs = on(device, batch)
    model = model.to(device)
    with nothing_waits(device):
        outputs = model(**inputs, use_cache=True, logits_to_keep=1)
    assert outputs.past_key_values.get_seq_length() > 0
    new = torch.ones(len(inputs["input_ids"]), 1, dtype=torch.long, device=device)
    with nothing_waits(device):
        model(input_ids=new, past_key_values=outputs.past_key_values)


@ON
@pytest.mark.parametrize(
    "changes", [{"max_grad_norm": 0.0}, {"max_grad_norm": 1.0}, {"max_tokens_per_device": 100}], ids=str
)
def test_two_optimizer_steps_of_the_trainer_wait_for_nothing(
    tmp_path: Path, device: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, counting, the guard against what is not finite, clipping, and the step itself."""
    words = flags(write_assets(tmp_path / "a"), tmp_path / "out", "finetune", optim="adamw_torch", **changes)
    model_args, data_args, args = parse_arguments(words)
    model, tokenizer, _ = load(model_args, data_args, args)
    choose_trained(model, model_args, args)
    dataset, collator = make_data(model, tokenizer, model_args, data_args)
    trainer = LlavaTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
    batches = iter(trainer.get_train_dataloader())
    monkeypatch.setattr(type(args), "device", property(lambda self: torch.device(device)))
    model.to(device)
    optimizer = trainer.create_optimizer()
    for _ in range(2):
        step = [next(batches) for _ in range(2)]
        if not trainer.fills:  # as accelerate's data loader does; filled steps are moved part by part
            step = [send_to_device(batch, device, non_blocking=True) for batch in step]
        with nothing_waits(device):
            micro, items = trainer.get_batch_samples(iter(step), 2, torch.device(device))
            for inputs in micro:
                trainer.training_step(model, inputs, items)
            norm = trainer._clip_grad_norm(model) if args.max_grad_norm else None
            trainer._get_grad_norm(model, norm)
            optimizer.step()
            model.zero_grad()
        trainer.state.global_step += 1
    assert trainer.meter.snapshot()["mean_text_tokens"] > 0


def test_batches_travel_to_the_device_while_it_computes(tmp_path: Path) -> None:
    arguments = parse_arguments(flags(write_assets(tmp_path / "a"), tmp_path / "out", "finetune"))
    model, tokenizer, _ = load(*arguments)
    dataset, collator = make_data(model, tokenizer, *arguments[:2])
    arguments[2].dataloader_pin_memory = True  # as it is where there is an accelerator
    trainer = LlavaTrainer(model=model, args=arguments[2], train_dataset=dataset, data_collator=collator)
    loader = trainer.get_train_dataloader()
    assert loader._non_blocking and loader.base_dataloader.pin_memory


def test_the_device_without_numbers_notices_every_way_of_asking() -> None:
    numbers = torch.zeros(4, device=DEVICE)
    asking: list[Callable[[], Any]] = [
        lambda: numbers[0].item(),
        lambda: bool(numbers.any()),
        lambda: float(numbers[0]),
        numbers.tolist,
        numbers.cpu,
        numbers.nonzero,
        numbers.unique,
        lambda: numbers[numbers > 0],
        lambda: torch.where(numbers > 0),
        lambda: numbers[[0, 1]],
        lambda: numbers[torch.tensor([0, 1])],
        lambda: numbers.masked_select(numbers > 0),
        lambda: torch.repeat_interleave(numbers, numbers.long()),
        lambda: torch.tensor([1, 2], device=DEVICE),
        lambda: numbers.new_tensor([1, 2]),
        lambda: torch.zeros(4).to(DEVICE),
        lambda: numbers.copy_(torch.zeros(4)),
        lambda: torch.equal(numbers, numbers),
        lambda: torch.arange(numbers[0]),
    ]
    for ask in asking:
        with pytest.raises(WaitsForTheDeviceError), NothingWaits():
            ask()
    with NothingWaits():
        torch.zeros(4).to(DEVICE, non_blocking=True)
        numbers.index_select(0, torch.full((2,), 1, device=DEVICE))
        numbers.masked_fill(numbers > 0, 1.0)
    with NothingWaits(["allowed_here"]) as mode:

        def allowed_here() -> None:
            numbers.cpu()

        allowed_here()
    assert mode.used == {"allowed_here"}
