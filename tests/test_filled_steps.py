"""Micro-batches filled by tokens: the samples of every step, the losses and the weights are those of the recipe."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from distributed import losses, summary
from safetensors.torch import load_file
from tiny_llava import flags, write_assets
from torch.utils.data import BatchSampler, SequentialSampler

from llava.data.micro_batches import StepCollator, cut_by_tokens
from llava.data.step_sampler import StepSampler
from llava.model import weights as weight_files
from llava.train import building
from llava.train.arguments import parse_arguments
from llava.train.train import train


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in `write_assets`, with answers of very different length, and so texts."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    chats = json.loads((folder / "chats.json").read_text())
    for number, chat in enumerate(chats):
        chat["id"] = f"{chat['id']}-{number}"
        chat["conversations"][-1]["value"] += " so it is" * (number * 7 % 13)
    (folder / "ragged.json").write_text(json.dumps(chats))
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# === Cutting ===


@pytest.mark.parametrize("packed", [False, True])
def test_no_micro_batch_has_more_tokens_than_asked_for_unless_one_sample_has(packed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    for most in (1, 30, 64, 500, 10**6):
        lengths = torch.randint(1, 100, (37,), generator=draw).tolist()
        groups = cut_by_tokens(lengths, most, packed)
        assert sorted(itertools.chain(*groups)) == list(range(37))
        for group in groups:
            held = [lengths[number] for number in group]
            assert len(group) == 1 or (sum(held) if packed else len(held) * max(held)) <= most
        assert groups == cut_by_tokens(lengths, most, packed)
        assert max(lengths) in [lengths[number] for number in groups[0]]
    assert len(cut_by_tokens(lengths, 500, packed=True)) <= len(cut_by_tokens(lengths, 500))


@pytest.mark.parametrize("packed", [False, True])
def test_as_few_micro_batches_as_can_be(packed: bool) -> None:
    """Against all partitions of a few samples."""
    lengths, most = [7, 3, 5, 2, 4, 1], 10

    def cost(groups: list[list[int]]) -> bool:
        return all(sum(one) <= most if packed else len(one) * max(one) <= most for one in groups)

    def partitions(left: list[int]) -> list[list[list[int]]]:
        if not left:
            return [[]]
        first, *others = left
        found = []
        for smaller in partitions(others):
            found += [[[first], *smaller]]
            found += [[*smaller[:at], [first, *smaller[at]], *smaller[at + 1 :]] for at in range(len(smaller))]
        return found

    fewest = min(len(groups) for groups in partitions(lengths) if cost(groups))
    assert len(cut_by_tokens(lengths, most, packed)) == fewest


def test_a_spare_batch_is_the_shortest_sample_without_labels() -> None:
    samples = [{"labels": torch.ones(length, dtype=torch.long), "sample_id": length} for length in (5, 3, 9)]
    step = StepCollator(list, lambda sample: len(sample["labels"]), 8, spare=True)(samples)
    assert [[sample["sample_id"] for sample in batch] for batch in step["batches"]] == [[9], [5], [3]]
    assert [sample["labels"].tolist() for sample in step["spare"]] == [[-100] * 3]
    assert step["long"] == [(9, 9)]


# === Dealing ===


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_step_has_the_samples_that_accelerate_would_deal(drop_last: bool) -> None:
    for samples, batch, steps, world in itertools.product((1, 2, 5, 8, 13, 24, 29), (1, 2, 3), (1, 2, 3), (1, 2, 3)):
        order = SequentialSampler(range(samples))
        plain = BatchSampler(order, batch, drop_last)
        usual = [plain if world == 1 else BatchSamplerShard(plain, world, rank) for rank in range(world)]
        lengths = [1 + number * 5 % 7 for number in range(samples)]
        ours = [StepSampler(order, batch, steps, world, rank, lengths, drop_last) for rank in range(world)]
        found = [list(sampler) for sampler in ours]
        batches = [list(sampler) for sampler in usual]
        expected = []
        for start in range(0, len(batches[0]), steps):
            expected.append(sorted(i for own in batches for one in own[start : start + steps] for i in one))
        assert [sorted(itertools.chain(*of_ranks)) for of_ranks in zip(*found, strict=True)] == expected
        assert all(len(sampler) == len(expected) for sampler in ours)
        assert all(share for own in found for share in own)


def test_ranks_have_like_work() -> None:
    """The published way, consecutive batches to consecutive ranks, has ranks that wait for others."""
    lengths = torch.randint(50, 2000, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    order = SequentialSampler(range(256))
    shares = [list(StepSampler(order, 4, 4, 4, rank, lengths)) for rank in range(4)]
    for of_ranks in zip(*shares, strict=True):
        work = [sum(lengths[number] for number in share) for share in of_ranks]
        assert max(work) < 1.05 * sum(work) / 4
    assert shares == [list(StepSampler(order, 4, 4, 4, rank, lengths)) for rank in range(4)]


# === Training ===


def options(assets: Path, **changes: object) -> dict[str, object]:
    common = {"data_path": assets / "ragged.json", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    common["packing"] = "off"
    return {**common, "max_steps": 5, "learning_rate": 3e-3, **changes}


@pytest.fixture(scope="module")
def by_rows(assets: Path) -> Path:
    return train(flags(assets, assets / "rows", "finetune", **options(assets)))


@pytest.mark.parametrize(("tokens", "packing"), [(64, "off"), (300, "off"), (300, "on"), (10**6, "auto")])
def test_losses_and_weights_are_those_of_rows(
    assets: Path, by_rows: Path, tmp_path: Path, tokens: int, packing: str
) -> None:
    """Two epochs, the first of which ends in a short step."""
    changes = options(assets, max_tokens_per_device=tokens, packing=packing)
    found = train(flags(assets, tmp_path / "out", "finetune", **changes))
    assert losses(found) == pytest.approx(losses(by_rows), abs=2e-5)
    expected, held = load_file(by_rows / "model.safetensors"), load_file(found / "model.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(held[name], weight, atol=2e-4, rtol=1e-3, msg=name)
    then, now = summary(by_rows), summary(found)
    assert [point["step"] for point in now["curve"]] == [point["step"] for point in then["curve"]]
    assert now["counts"] == then["counts"]
    for name in ("samples", "tokens", "visual_tokens", "images", "flops"):
        assert now["metrics"][name] == then["metrics"][name], name
    padding, passes = now["metrics"]["padding_share"], now["metrics"]["batches"]
    if packing == "off":  # at 64 each sample is longer
        assert passes == then["counts"]["samples"] if tokens == 64 else passes < then["counts"]["samples"]
        assert padding < then["metrics"]["padding_share"]
    else:
        assert padding == 0 and now["metrics"]["padding_share_of_layers"] == 0
        assert passes == 5 if tokens == 10**6 else passes >= now["metrics"]["tokens"] / 300


def test_packed_rows_teach_the_same_as_padded_ones(assets: Path, by_rows: Path, tmp_path: Path) -> None:
    found = train(flags(assets, tmp_path / "out", "finetune", **options(assets, packing="on")))
    assert losses(found) == pytest.approx(losses(by_rows), abs=2e-5)
    assert summary(found)["metrics"]["padding_share"] == 0 < summary(by_rows)["metrics"]["padding_share"]
    assert summary(found)["metrics"]["batches"] == summary(by_rows)["metrics"]["batches"]


def test_packing_that_the_attention_kernel_cannot_is_refused(assets: Path, tmp_path: Path) -> None:
    changes = options(assets, packing="on", attn_implementation="eager")
    with pytest.raises(ValueError, match=r"packing is 'on', but .*eager"):
        train(flags(assets, tmp_path / "out", "finetune", **changes))
    with pytest.raises(ValueError, match="--packing is 'yes'; it must be one of auto, on, off"):
        parse_arguments(flags(assets, tmp_path / "out", "finetune", packing="yes"))


def test_a_resumed_run_equals_the_uninterrupted_one(assets: Path, tmp_path: Path) -> None:
    """Interrupted in the middle of the second epoch; adapters with dropout, so that random states matter too."""
    changes = options(assets, max_tokens_per_device=200, max_steps=6, save_strategy="steps", save_steps=4)
    changes |= {"lora_enable": True, "lora_r": 4, "lora_dropout": 0.2, "group_by_modality_length": True}
    train(flags(assets, tmp_path / "whole", "finetune", **changes))
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "again/checkpoint-4")
    train(flags(assets, tmp_path / "again", "finetune", **changes))
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    whole, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "again"))
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_workers_change_nothing(assets: Path, tmp_path: Path, by_rows: Path) -> None:
    changes = options(assets, max_tokens_per_device=300, dataloader_num_workers=2)
    found = train(flags(assets, tmp_path / "out", "finetune", **changes))
    assert losses(found) == pytest.approx(losses(by_rows), abs=2e-5)


def test_a_sample_that_is_too_long_is_said_once(assets: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = options(assets, max_tokens_per_device=64, max_steps=2)
    train(flags(assets, tmp_path / "out", "finetune", **changes))
    said = [record.message for record in caplog.records if "--max_tokens_per_device 64" in record.message]
    assert len(said) == 1 and "tokens in the decoder" in said[0] and "-" in said[0]


def test_a_loss_that_is_not_finite_names_the_samples_of_its_micro_batch(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(flags(assets, tmp_path / "pre", "pretrain", max_steps=1))
    weights = torch.load(tmp_path / "pre/mm_projector.bin", weights_only=True)
    weights["model.mm_projector.2.bias"][0] = float("nan")
    torch.save(weights, tmp_path / "nan.bin")
    for module, check in ((weight_files, "_require_trained"), (building, "require_finite_start")):
        monkeypatch.setattr(module, check, lambda *arguments: None)
    changes = options(assets, max_tokens_per_device=64, pretrain_mm_mlp_adapter=tmp_path / "nan.bin")
    with pytest.raises(FloatingPointError, match=r"The loss is nan in step 1.*Samples of the batch: '\w+-\d+-\d+'\."):
        train(flags(assets, tmp_path / "out", "finetune", **changes, compression="none"))


def test_a_sample_that_cannot_be_read_is_counted_and_named(assets: Path, tmp_path: Path) -> None:
    chats = json.loads((assets / "ragged.json").read_text())
    chats[2]["image"] = "missing.png"
    (tmp_path / "bad.json").write_text(json.dumps(chats))
    changes = options(assets, data_path=tmp_path / "bad.json", max_tokens_per_device=300, max_steps=3)
    found = train(flags(assets, tmp_path / "out", "finetune", on_bad_sample="skip", max_bad_share=0.5, **changes))
    assert summary(found)["counts"]["skipped"] == 1
    assert chats[2]["id"] in (found / "skipped_samples-0.jsonl").read_text()


def test_means_of_each_device_are_refused(assets: Path, tmp_path: Path) -> None:
    changes = options(assets, max_tokens_per_device=300, average_tokens_across_devices=False)
    with pytest.raises(ValueError, match=r"--max_tokens_per_device 300 .*--average_tokens_across_devices False"):
        parse_arguments(flags(assets, tmp_path, "finetune", **changes))
