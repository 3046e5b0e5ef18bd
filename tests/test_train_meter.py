"""What a run reports of itself, against counts by hand, plain loops and a clock that the test turns."""

from __future__ import annotations

import json
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import DUET, chat, collate, pixels, tiny_llava
from torch import Tensor

from llava.compression.layout import TokenLayout
from llava.cost.flops import training_flops, training_passes
from llava.cost.hardware import device_peak, peak_flops, peak_memory_bytes
from llava.cost.shapes import DecoderShape, VisionShape
from llava.cost.workload import Workload
from llava.train import meter as module
from llava.train.meter import Tally, TrainingMeter, summary_table

CPU = torch.device("cpu")
LAYERS = 6
# DUET brings 10 visual tokens an image into layers 0-1, half of them into 2-3, a fifth into 4-5.
ROWS = [chat(1, images=(0,)), chat(2, images=(1,)), chat(3, images=(2, 0, 3))]
IMAGES = [0, 1, 5]
TEXT = [len(row.ids) - count for row, count in zip(ROWS, IMAGES, strict=True)]
STAIRS = [[0, 0, 0], [10, 5, 2], [50, 25, 10]]


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def forward(
    rows: list, images: Tensor, compression: dict | None = DUET, packing: str = "off"
) -> tuple[TokenLayout, ...]:
    model = tiny_llava(compression=compression).train()
    return model(**collate(rows, labels=True), images=images, packing=packing).layouts


@pytest.fixture(scope="module")
def mixed() -> tuple[TokenLayout, ...]:
    return forward(ROWS, pixels(6))


@pytest.fixture(scope="module")
def text_only() -> tuple[TokenLayout, ...]:
    return forward(ROWS[:1], torch.zeros(1, 3, 56, 56, dtype=torch.float64))


def duet_workload(**changes) -> Workload:
    shapes = DecoderShape(LAYERS, 32, 4, 2, 8, 64, 48), VisionShape(4, 16, 32, 16, 588)
    return Workload(*shapes, (2, 4), projector=16 * 32 + 32 * 32, **changes)


def flops_by_loop(rows: list[int], passes: int, tower: int = 1) -> int:
    """Rows by number; each matrix product of each layer by its size, without anything from the project."""
    total = 0
    for row in rows:
        for layer in range(LAYERS):
            tokens = TEXT[row] + STAIRS[row][layer // 2]
            maps = tokens * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)
            attention = tokens * tokens * 32  # scores and values, half of the square each
            total += passes * 2 * (maps + attention)
        total += 3 * 2 * 32 * 48 * (TEXT[row] + STAIRS[row][2])
        total += 3 * 2 * (16 * 32 + 32 * 32) * STAIRS[row][0]
        a_layer_of_the_tower = 2 * 17 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 17 * 17 * 16
        total += tower * IMAGES[row] * (4 * a_layer_of_the_tower + 2 * 16 * 588 * 16)
    return total


# === Counts ===


def test_counts_are_those_of_the_rows(mixed) -> None:
    meter = TrainingMeter(duet_workload(), CPU)
    meter.add(mixed, 6)
    totals = meter.totals()
    lengths = [text + stairs[0] for text, stairs in zip(TEXT, STAIRS, strict=True)]
    assert (totals["batches"], totals["samples"], totals["samples_with_image"], totals["images"]) == (1, 3, 2, 6)
    assert (totals["tokens"], totals["visual_tokens"]) == (sum(lengths), 60)
    assert totals["padding_share"] == pytest.approx(1 - sum(lengths) / (3 * max(lengths)))
    assert totals["padding_share"] > 0.3
    stages = [[text + stairs[stage] for text, stairs in zip(TEXT, STAIRS, strict=True)] for stage in range(3)]
    computed = sum(2 * 3 * max(stage) for stage in stages)  # two layers of each stage, three rows
    assert totals["padding_share_of_layers"] == pytest.approx(1 - sum(2 * sum(stage) for stage in stages) / computed)
    assert totals["mean_text_tokens"] == pytest.approx(sum(TEXT) / 3)
    assert totals["mean_sequence_tokens"] == pytest.approx(sum(lengths) / 3)
    assert totals["visual_tokens_entered"] == 30
    assert totals["visual_tokens_after_layer_2"] == 15
    assert totals["visual_tokens_after_layer_4"] == 6
    assert totals["average_visual_tokens"] == pytest.approx((30 * 2 + 15 * 2 + 6 * 2) / 6)


def test_packed_rows_have_no_padding_and_the_same_counts(mixed) -> None:
    padded, packed = (TrainingMeter(duet_workload(), CPU) for _ in range(2))
    padded.add(mixed, 6)
    packed.add(forward(ROWS, pixels(6), packing="on"), 6)
    one, other = padded.totals(), packed.totals()
    assert one["padding_share"] > 0.3 and other["padding_share"] == 0
    for name in ("samples", "tokens", "visual_tokens", "mean_sequence_tokens", "average_visual_tokens"):
        assert one[name] == other[name], name


def test_a_model_without_compression_has_one_stage() -> None:
    model = tiny_llava().train()
    meter = TrainingMeter(Workload.of(model, False), CPU)
    meter.add(model(**collate(ROWS, labels=True), images=pixels(6)).layouts, 6)
    snapshot = meter.snapshot()
    assert snapshot["visual_tokens_entered"] == snapshot["average_visual_tokens"] == (16 + 5 * 16) / 2
    assert not any("after_layer" in name for name in snapshot)


def test_layouts_of_another_compression_are_refused(mixed) -> None:
    meter = TrainingMeter(duet_workload(), CPU)
    with pytest.raises(ValueError, match=r"ran 2 stages, but this meter counts 3 \(drops after layers \(2, 4\)\)"):
        meter.add(mixed[:2], 6)


def test_counting_reads_no_tensor_and_takes_no_time(mixed) -> None:
    batch = collate([chat(seed, images=(seed % 3,)) for seed in range(16)], labels=True)
    images = pixels(sum(seed % 3 for seed in range(16)))
    model = tiny_llava(compression=DUET).train()
    layouts = [layout.to(torch.device("meta")) for layout in model(**batch, images=images).layouts]
    meter = TrainingMeter(duet_workload(), CPU)
    seconds = []
    for _ in range(20):
        start = time.thread_time()
        meter.add(layouts, len(images))
        seconds.append(time.thread_time() - start)
    assert min(seconds) < 2e-3
    assert meter.totals()["samples"] == 320


# === FLOPs ===


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_flops_are_those_of_a_plain_loop(mixed, trained: bool, checkpointing: bool) -> None:
    work = duet_workload(trains_language_model=trained, activation_checkpointing=checkpointing)
    passes = {(True, True): 4, (True, False): 3, (False, True): 3, (False, False): 2}[trained, checkpointing]
    assert work.passes == training_passes(trained, checkpointing) == passes
    executed, recomputed = work.flops(mixed, 6)
    assert executed == flops_by_loop([0, 1, 2], passes)
    assert executed - recomputed == flops_by_loop([0, 1, 2], 2 + trained)


def test_flops_are_those_of_the_schedule_row_by_row(mixed) -> None:
    work = duet_workload(activation_checkpointing=True)
    expected = sum(
        training_flops([stairs[layer // 2] for layer in range(LAYERS)], text, work.decoder, work.vision, images)
        for stairs, text, images in zip(STAIRS, TEXT, IMAGES, strict=True)
    )
    assert work.flops(mixed, 6)[0] == expected


def test_a_trained_tower_costs_three_passes_or_four(mixed) -> None:
    for checkpointing, passes in ((False, 3), (True, 4)):
        work = duet_workload(trains_vision_tower=True, activation_checkpointing=checkpointing)
        executed, recomputed = work.flops(mixed, 6)
        assert executed == flops_by_loop([0, 1, 2], passes, tower=passes)
        assert executed - recomputed == flops_by_loop([0, 1, 2], 3, tower=3)


def test_the_dummy_image_of_a_batch_of_text_counts_for_nothing(text_only) -> None:
    meter = TrainingMeter(duet_workload(), CPU)
    meter.add(text_only, 1)
    totals = meter.totals()
    assert totals["flops"] == flops_by_loop([0], 3)
    assert (totals["images"], totals["samples_with_image"], totals["tokens"]) == (0, 0, TEXT[0])
    assert totals["padding_share"] == 0
    assert not any("visual_tokens_" in name for name in totals), "there is no mean over no samples"


# === What a step computes ===


def test_the_workload_is_read_from_a_model() -> None:
    model = tiny_llava(compression=DUET)
    model.requires_grad_(True)
    model.get_vision_tower().requires_grad_(False)
    assert Workload.of(model, True) == duet_workload(activation_checkpointing=True)
    model.requires_grad_(False)
    model.get_model().mm_projector.requires_grad_(True)
    assert Workload.of(model, False) == duet_workload(trains_language_model=False)
    model.get_vision_tower().requires_grad_(True)
    assert Workload.of(model, False).trains_vision_tower
    alone = tiny_llava(mm_vision_tower=None)
    assert (Workload.of(alone, False).vision, Workload.of(alone, False).stages) == (None, (6,))


def test_adapters_do_not_make_the_language_model_a_trained_one() -> None:
    peft = pytest.importorskip("peft")
    model = tiny_llava(compression=DUET)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
    work = Workload.of(wrapped, True)
    assert (work.trains_language_model, work.passes, work.drops) == (False, 3, (2, 4))


# === Time ===


def test_rates_and_shares_by_a_clock_of_the_test(mixed) -> None:
    clock = Clock()
    meter = TrainingMeter(duet_workload(activation_checkpointing=True), CPU, peak_flops=4e6, clock=clock)
    clock.pass_by(1000)  # loading the model: before the first batch is fetched
    for _ in range(2):
        with meter.waiting():
            clock.pass_by(0.5)
        clock.pass_by(1)
        meter.add(mixed, 6)
        clock.pass_by(0.5)
    with meter.paused():
        clock.pass_by(60)
        with meter.paused():
            clock.pass_by(60)
        clock.pass_by(60)
    snapshot = meter.snapshot()
    tokens = 2 * (sum(TEXT) + 60)
    assert snapshot["tokens_per_second"] == pytest.approx(tokens / 4)
    assert snapshot["samples_per_second"] == pytest.approx(6 / 4)
    assert snapshot["data_wait_share"] == pytest.approx(1 / 4)
    assert snapshot["tflops"] == pytest.approx(2 * flops_by_loop([0, 1, 2], 4) / 4 / 1e12)
    assert snapshot["hfu"] == pytest.approx(2 * flops_by_loop([0, 1, 2], 4) / 4 / 4e6)
    assert snapshot["mfu"] == pytest.approx(2 * flops_by_loop([0, 1, 2], 3) / 4 / 4e6)


def test_a_snapshot_starts_anew_and_totals_do_not(mixed, text_only) -> None:
    clock = Clock()
    meter = TrainingMeter(duet_workload(), CPU, clock=clock)
    with meter.waiting():
        clock.pass_by(1)
    meter.add(mixed, 6)
    clock.pass_by(1)
    assert meter.snapshot()["samples_per_second"] == pytest.approx(3 / 2)
    clock.pass_by(4)
    meter.add(text_only, 1)
    meter.stop()
    clock.pass_by(100)  # writing the model
    totals = meter.totals()
    assert (totals["seconds"], totals["samples"], totals["data_wait_share"]) == (6, 4, pytest.approx(1 / 6))
    assert meter.totals() | {"peak_memory_gib": totals["peak_memory_gib"]} == totals, "asking changes nothing"
    snapshot = meter.snapshot()
    assert snapshot["samples_per_second"] == pytest.approx(1 / 4)
    assert snapshot["data_wait_share"] == 0
    assert "tokens_per_second" not in meter.snapshot(), "no time has passed"


def test_fetching_is_timed_and_hands_on_the_same_batches(mixed) -> None:
    clock = Clock()
    meter = TrainingMeter(duet_workload(), CPU, clock=clock)

    def slow():
        for batch in "abc":
            clock.pass_by(2)
            yield batch

    batches = slow()
    assert next(meter.fetched(batches)) == "a"
    clock.pass_by(2)
    assert list(meter.fetched(batches)) == ["b", "c"]
    assert meter.snapshot()["data_wait_share"] == pytest.approx(6 / 8)


def test_without_a_known_peak_there_is_no_utilisation(mixed) -> None:
    clock = Clock()
    unknown = peak_flops("Imaginary Accelerator 9000", torch.bfloat16)
    meter = TrainingMeter(duet_workload(), CPU, unknown, clock)
    meter.add(mixed, 6)
    clock.pass_by(1)
    snapshot = meter.snapshot()
    assert "tflops" in snapshot and not {"mfu", "hfu"} & set(snapshot)
    assert "there is no MFU" in meter.totals()["assumptions"]
    assert "MFU" not in summary_table(meter.totals())


# === Several processes ===


def beside(monkeypatch: pytest.MonkeyPatch, other: Tally) -> None:
    """Let another process have a tally, too."""
    monkeypatch.setattr(module, "of_all_ranks", lambda own: [*own, other])


def test_two_processes_together_are_one_that_saw_both(mixed, text_only, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    first, second, both = (TrainingMeter(duet_workload(), CPU, 1e6, clock) for _ in range(3))
    for meter in (first, second, both):
        with meter.waiting():
            pass
    with first.waiting(), both.waiting():
        clock.pass_by(1)
    first.add(mixed, 6)
    second.add(text_only, 1)
    both.add(mixed, 6)
    both.add(text_only, 1)
    clock.pass_by(3)
    alone = both.totals()
    sent: list[Tally] = []
    monkeypatch.setattr(module, "of_all_ranks", lambda own: sent.extend(own) or own)
    second.totals()
    beside(monkeypatch, pickle.loads(pickle.dumps(sent[0])))
    merged = first.totals()
    assert (merged.pop("devices"), alone.pop("devices")) == (2, 1)
    assert merged.pop("peak_memory_gib") == pytest.approx(alone.pop("peak_memory_gib"), rel=0.01)
    halved = {"tflops", "mfu", "hfu", "data_wait_share"}  # of one device; the one that saw both did the work of two
    assert {name: merged[name] for name in halved} == pytest.approx({name: alone[name] / 2 for name in halved})
    assert {name: value for name, value in merged.items() if name not in halved} == {
        name: value for name, value in alone.items() if name not in halved
    }
    snapshot = first.snapshot()
    assert snapshot["samples_per_second"] == pytest.approx(4 / 4)


def test_memory_of_several_processes_is_that_of_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = TrainingMeter(duet_workload(), CPU)
    own = meter.snapshot()["peak_memory_gib"]
    beside(monkeypatch, replace(Tally.zero(3), peak_memory=int(2 * own * 2**30)))
    assert meter.snapshot()["peak_memory_gib"] == pytest.approx(2 * own, rel=0.1)


# === The table ===


def test_the_table_says_what_was_counted(mixed) -> None:
    clock = Clock()
    meter = TrainingMeter(duet_workload(activation_checkpointing=True), CPU, 4e6, clock)
    with meter.waiting():
        clock.pass_by(1)
    meter.add(mixed, 6)
    clock.pass_by(3)
    totals = json.loads(json.dumps(meter.totals()))
    table = summary_table(totals)
    assert "3, 2 of them with 6 images" in table
    assert "30.00 enter, 15.00 after 2 layers, 6.00 after 4 layers; average 17.00" in table
    assert f"{(sum(TEXT) + 60) / 4:,.1f} tokens/s, 0.75 samples/s" in table
    mfu, hfu = (flops_by_loop([0, 1, 2], passes) / 4 / 4e6 for passes in (3, 4))
    assert f"MFU {mfu:.1%}, HFU {hfu:.1%}" in table
    assert "waited for 25.0%" in table
    assert "GiB resident in the process" in table
    assert "4 through a decoder layer" in totals["assumptions"] and "4e-06 TFLOP/s" in totals["assumptions"]


def test_a_run_without_a_step_has_a_table_too() -> None:
    totals = TrainingMeter(duet_workload(), CPU).totals()
    assert (totals["samples"], totals["seconds"], totals["flops"]) == (0, 0, 0)
    assert summary_table(totals).startswith("samples")


# === Hardware ===


@pytest.mark.parametrize(
    ("name", "dtype", "tf32", "expected"),
    [
        ("Tesla V100-SXM2-32GB", torch.float16, False, 125),
        ("Tesla V100-SXM2-32GB", torch.bfloat16, False, None),
        ("Tesla V100-SXM2-32GB", torch.float32, True, 15.7),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16, False, 312),
        ("NVIDIA A100 80GB PCIe", torch.float32, True, 156),
        ("A100-PCIE-40GB", torch.float32, False, 19.5),
        ("NVIDIA A100-SXM-64GB", torch.bfloat16, False, None),
        ("NVIDIA A10", torch.bfloat16, False, 125),
        ("NVIDIA A10G", torch.bfloat16, False, None),
        ("NVIDIA H100 80GB HBM3", torch.bfloat16, False, 989.4),
        ("NVIDIA H100 PCIe", torch.bfloat16, False, 756),
        ("NVIDIA H100 NVL", torch.bfloat16, False, 835.5),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", torch.bfloat16, False, None),
        ("NVIDIA H200", torch.bfloat16, False, 989.4),
        ("NVIDIA B200", torch.bfloat16, False, 2250),
        ("NVIDIA GB200", torch.bfloat16, False, None),
        ("NVIDIA L40S", torch.float16, False, 362.05),
        ("NVIDIA GeForce RTX 4090", torch.bfloat16, False, 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", torch.bfloat16, False, None),
        ("NVIDIA GeForce RTX 3090", torch.bfloat16, False, 71.2),
        ("AMD Instinct MI210", torch.bfloat16, False, 181),
        ("AMD Instinct MI250X", torch.bfloat16, False, 191.5),
        ("AMD Instinct MI250X / MI250", torch.bfloat16, False, None),
        ("AMD Instinct MI300X OAM", torch.bfloat16, False, 1307.4),
        ("AMD Instinct MI300X", torch.float32, False, 163.4),
        ("AMD Instinct MI325X", torch.float16, False, 1307.4),
        ("AMD Instinct MI355X", torch.bfloat16, False, 2516.6),
        ("NVIDIA H200", torch.float64, False, None),
        ("AMD Radeon Graphics", torch.float16, False, None),
        ("", torch.float16, False, None),
    ],
)
def test_peaks_of_known_devices_and_of_no_others(name: str, dtype, tf32: bool, expected: float | None) -> None:
    peak = peak_flops(name, dtype, tf32)
    assert peak is None if expected is None else peak == pytest.approx(expected * 1e12)


def test_the_users_peak_goes_first_and_must_make_sense() -> None:
    assert device_peak(CPU, torch.float32) is None
    assert device_peak(CPU, torch.float32, 1.5) == 1.5e12
    for wrong in (0.0, -312.0, float("nan")):
        with pytest.raises(ValueError, match=r"--peak_tflops is .*; it must be above 0"):
            device_peak(CPU, torch.float32, wrong)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_process_is_what_the_system_says() -> None:
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    status = Path("/proc/self/status").read_text()
    highest = int(status.split("VmHWM:")[1].split()[0]) * 1024
    peak = peak_memory_bytes(CPU)
    assert peak.kind == "resident in the process"
    assert peak.bytes == pytest.approx(highest, rel=0.02) and peak.bytes > block.numel()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_peak_memory_of_a_gpu_is_that_of_its_tensors() -> None:
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    block = torch.ones(2**28, dtype=torch.uint8, device=device)
    peak = peak_memory_bytes(device)
    assert peak.kind == "allocated on the device"
    assert peak.bytes >= before + block.numel()
