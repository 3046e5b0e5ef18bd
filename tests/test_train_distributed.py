"""Two processes under torchrun and DeepSpeed: equal to one, never hanging, and losing nothing when killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from distributed import Process, assert_equal, end, losses, run, start, summary, tail, wait, weights
from hostile import new_zip
from safetensors.torch import load_file
from tiny_llava import flags, write_assets

from llava.checkpoints.consolidation import consolidate
from llava.model.builder import load_pretrained_model
from llava.model.weights import read_state_dict
from llava.train.manifest import seal
from llava.train.train import train

ROOT = Path(__file__).resolve().parents[1]
STEPS = 8
LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, models, and under `pre` a projector to start from."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    train(flags(folder, folder / "pre", "pretrain", max_steps=2))
    return folder


def options(assets: Path, **changes: object) -> dict[str, object]:
    """Of a fine-tuning with 4 samples a step; with two processes each has two."""
    common = {"pretrain_mm_mlp_adapter": assets / "pre/mm_projector.bin", "max_steps": STEPS, "learning_rate": 3e-3}
    return {**common, "per_device_train_batch_size": 2, "group_by_modality_length": True, **changes}


# === Equal to one process ===


@pytest.fixture(scope="module")
def alone(assets: Path) -> Path:
    """The same training in one process."""
    return train(flags(assets, assets / "alone", "finetune", **options(assets, per_device_train_batch_size=4)))


@pytest.fixture(scope="module", params=["deepspeed-2", "forked-3", "forked-3_offload"])
def zero(request: pytest.FixtureRequest, assets: Path) -> Path:
    """A training with a launcher and a ZeRO stage, with a checkpoint half way."""
    launcher, stage = request.param.split("-")
    out = assets / request.param
    config = ROOT / f"configs/deepspeed/zero{stage}.json"
    saving = {"save_strategy": "steps", "save_steps": STEPS // 2, "early_save_check": True}
    changes = options(assets, deepspeed=config, **saving)
    run(launcher, flags(assets, out, "finetune", **changes), assets / f"{request.param}.log")
    return out


def test_zero_has_the_losses_and_weights_of_one_process(zero: Path, alone: Path) -> None:
    assert len(losses(zero)) == STEPS
    assert losses(zero) == pytest.approx(losses(alone), abs=1e-4)
    expected, found = weights(alone), weights(zero)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_fault_6_projector_has_its_size_in_every_checkpoint(zero: Path, alone: Path) -> None:
    for folder in (zero, zero / f"checkpoint-{STEPS // 2}"):
        held, expected = load_file(folder / "model.safetensors"), load_file(alone / "model.safetensors")
        assert {name: weight.shape for name, weight in held.items()} == {
            name: weight.shape for name, weight in expected.items()
        }


def test_consolidated_weights_are_those_of_the_checkpoint_and_open(zero: Path, tmp_path: Path) -> None:
    """What DeepSpeed's pieces hold is, in float32, what the engine gathered when it saved; no script is left about."""
    checkpoint = zero / f"checkpoint-{STEPS // 2}"
    assert not list(checkpoint.rglob("*.py"))
    consolidate(checkpoint, tmp_path / "whole")
    found, expected = load_file(tmp_path / "whole/model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    _, model, _, _ = load_pretrained_model(str(tmp_path / "whole"), device="cpu", dtype=torch.float32)
    opened = dict(model.named_parameters())
    assert all(torch.equal(opened[name], expected[name]) for name in expected)


def test_frozen_weights_have_no_optimizer_state(zero: Path) -> None:
    """A trained weight has a float32 copy and two moments; the files have room for no more."""
    counts = summary(zero)["parameters"]
    trained, frozen = (sum(part["trained"] for part in counts.values()), counts["vision_tower"]["all"])
    assert counts["vision_tower"]["trained"] == 0 and trained > 0
    pieces = list((zero / f"checkpoint-{STEPS // 2}/global_step{STEPS // 2}").glob("*optim_states.pt"))
    held = sum(piece.stat().st_size for piece in pieces)
    assert len(pieces) == 2 and 12 * trained <= held < 12 * (trained + frozen)


@pytest.mark.parametrize("stage", [2, 3])
def test_fault_4_lora_under_zero_resumes_bit_for_bit(assets: Path, tmp_path: Path, stage: int) -> None:
    """bfloat16 for one stage, float32 for the other; dropout makes the random states matter."""
    config = {"deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json", "bf16": stage == 2}
    changes = options(assets, max_steps=6, save_strategy="steps", save_steps=3, **LORA, **config)
    run("forked", flags(assets, tmp_path / "whole", "finetune", **changes), tmp_path / "log")
    shutil.copytree(tmp_path / "whole/checkpoint-3", tmp_path / "again/checkpoint-3")
    run("forked", flags(assets, tmp_path / "again", "finetune", **changes), tmp_path / "log2")
    assert_equal(tmp_path / "whole", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert_float32_of(tmp_path / "whole/checkpoint-3", tmp_path / "float32", rounded=stage == 2)
    if stage == 3:
        assert_hostile_piece_stops_both_ranks(flags(assets, tmp_path / "again", "finetune", **changes), tmp_path)


def assert_float32_of(checkpoint: Path, target: Path, rounded: bool) -> None:
    """Consolidated adapters round to those that the engine saved, and hold more where that was in bfloat16."""
    consolidate(checkpoint, target)
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        held, saved = read_state_dict(target / name), read_state_dict(checkpoint / name)
        assert held.keys() == saved.keys() and all(tensor.dtype == torch.float32 for tensor in held.values())
        assert all(torch.equal(held[key].to(saved[key].dtype), saved[key]) for key in saved)
        assert not rounded or any(not torch.equal(held[key], held[key].bfloat16().float()) for key in held)


def assert_hostile_piece_stops_both_ranks(arguments: list[str], folder: Path) -> None:
    """A piece of one rank asks for code, beside a good earlier checkpoint: nothing runs, and nobody waits."""
    (folder / "again/adapter_model.safetensors").unlink()
    pieces = folder / "again/checkpoint-6/global_step6"
    new_zip(pieces / "zero_pp_rank_1_mp_rank_00_optim_states.pt", folder / "marker")
    seal(folder / "again/checkpoint-6")
    log = folder / "log3"
    assert wait(start("forked", arguments, log), log) != 0
    said = tail(log, 100_000)
    assert "zero_pp_rank_1_mp_rank_00_optim_states.pt" in said and "posix.system" in said, said
    assert not (folder / "marker").exists() and "Resuming from" not in said


def test_qlora_trains_on_two_ranks_under_zero(assets: Path, tmp_path: Path) -> None:
    config = {"deepspeed": ROOT / "configs/deepspeed/zero2.json", "bits": 4}
    changes = options(assets, max_steps=6, **LORA, **config)
    run("forked", flags(assets, tmp_path / "out", "finetune", **changes), tmp_path / "log")
    curve = losses(tmp_path / "out")
    assert curve[-1] < curve[1] and weights(tmp_path / "out")


# === Different contents ===


@pytest.mark.parametrize("stage", [2, 3])
def test_fault_7_ranks_with_different_contents_neither_hang_nor_disagree(
    assets: Path, tmp_path: Path, stage: int
) -> None:
    """Rank 0 sees text where rank 1 sees five images, and the other way round; the last drop leaves no visual token."""
    (tmp_path / "mixed.json").write_text(json.dumps(mixed_records() * 2))
    changes = options(
        assets,
        data_path=tmp_path / "mixed.json",
        train_sampling_strategy="sequential",
        group_by_modality_length=False,
        per_device_train_batch_size=1,
        max_steps=6,
    )
    config = {"deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json"}
    run("forked", flags(assets, tmp_path / "two", "finetune", **changes, **config), tmp_path / "log")
    single = changes | {"per_device_train_batch_size": 2}
    train(flags(assets, tmp_path / "one", "finetune", **single))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def mixed_records() -> list[dict]:
    """Neighbours go to different ranks: text beside one image, five images, text, and no answer in sight."""

    def record(name: str, images: int) -> dict:
        marks = "<image>\n" * images
        shown = {"image": ["red.png", "blue.png", "green.png", "yellow.png", "red.png"][:images]} if images else {}
        turns = [{"from": "human", "value": f"{marks}Which colour is it?"}, {"from": "gpt", "value": "blue"}]
        return {"id": name, "conversations": turns, **shown}

    return [record(f"r{i}", count) for i, count in enumerate((0, 1, 5, 0, 0, 5, 0, 0, 1, 5, 1, 0))]


# === Killed, told to stop, and gone on ===


def ranks_of(process: Process) -> list[psutil.Process]:
    """The training processes, which are the children of their launcher."""
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2, ranks
    return ranks


def wait_for(path: Path, process: Process, log: Path, patience: float = 600) -> None:
    """Until a folder is there."""
    started = time.monotonic()
    while not path.exists():
        assert process.poll() is None and time.monotonic() - started < patience, tail(log)
        time.sleep(0.01)


PARTS: dict[str, tuple[str, str, dict[str, object]]] = {
    "full": ("forked", "finetune", {}),
    "lora": ("forked", "finetune", LORA),
    "adapter-only": ("forked", "pretrain", {"pretrain_mm_mlp_adapter": None, "group_by_modality_length": False}),
}


@pytest.mark.parametrize("part", PARTS)
def test_fault_4_killed_at_a_random_step_and_started_again(assets: Path, tmp_path: Path, part: str) -> None:
    """`kill -9` of one of two ranks; the second start ends with the weights of a run that nobody disturbed."""
    launcher, phase, changes = PARTS[part]
    changes = options(assets, max_steps=24, save_strategy="steps", save_steps=4, save_total_limit=2) | changes
    run("forked", flags(assets, tmp_path / "whole", phase, **changes), tmp_path / "whole.log")
    arguments, log = flags(assets, tmp_path / "killed", phase, **changes), tmp_path / "killed.log"
    process = start(launcher, arguments, log)
    try:
        wait_for(tmp_path / "killed/checkpoint-4", process, log)
        time.sleep(random.uniform(0, 0.3))
        random.choice(ranks_of(process)).kill()
        assert process.wait(timeout=600) != 0
    finally:
        end(process)
    reached = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert reached and not (tmp_path / "killed/train_summary.json").exists(), reached
    run("forked", arguments, tmp_path / "again.log")
    assert "Resuming from" in tail(tmp_path / "again.log", 100_000)
    assert_equal(tmp_path / "killed", tmp_path / "whole")


def test_fault_4_told_to_stop_a_run_saves_and_says_so(assets: Path, tmp_path: Path) -> None:
    """SIGTERM to the whole process group, data loading included, as a cluster does it."""
    changes = options(assets, max_steps=60, save_strategy="steps", save_steps=20, dataloader_num_workers=1)
    train(flags(assets, tmp_path / "whole", "finetune", **changes))
    arguments, log = flags(assets, tmp_path / "out", "finetune", **changes), tmp_path / "log"
    process = start("python", arguments, log)
    wait_for(tmp_path / "out/checkpoint-20", process, log)
    os.killpg(process.pid, signal.SIGTERM)
    assert wait(process, log) == 75, tail(log)
    note = json.loads((tmp_path / "out/preempted.json").read_text())
    assert note["signal"] == "SIGTERM" and (tmp_path / f"out/checkpoint-{note['step']}").is_dir()
    assert not (tmp_path / "out/model.safetensors").exists()
    train(arguments)
    assert not (tmp_path / "out/preempted.json").exists()
    assert_equal(tmp_path / "out", tmp_path / "whole")


def test_fault_4_told_to_stop_through_torchrun_both_ranks_save(assets: Path, tmp_path: Path) -> None:
    changes = options(assets, max_steps=2000, save_strategy="steps", save_steps=500)
    log = tmp_path / "log"
    process = start("torchrun", flags(assets, tmp_path / "out", "finetune", **changes), log)
    try:
        started = time.monotonic()
        while "'loss'" not in tail(log, 1_000_000):
            assert process.poll() is None and time.monotonic() - started < 600, tail(log)
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=600)
    finally:
        end(process)
    note = json.loads((tmp_path / "out/preempted.json").read_text())
    assert (tmp_path / f"out/checkpoint-{note['step']}/manifest.json").is_file(), tail(log)
