"""Micro-batches filled by tokens on two ranks, which cut their samples into different numbers of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from distributed import assert_equal, losses, run, summary, weights
from tiny_llava import flags, write_assets

from llava.train.train import train

ROOT = Path(__file__).resolve().parents[1]
STEPS = 4
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As in `write_assets`, with one text that is longer than all others of its step together."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    chats = json.loads((folder / "chats.json").read_text())
    for number, chat in enumerate(chats):
        chat["id"] = f"{chat['id']}-{number}"
        chat["conversations"][-1]["value"] += " so it is" * (40 if number % 5 == 4 else number % 3)
    (folder / "ragged.json").write_text(json.dumps(chats))
    train(flags(folder, folder / "pre", "pretrain", max_steps=1))  # ZeRO-3 draws a new projector otherwise than others
    return folder


def options(assets: Path, **changes: object) -> dict[str, object]:
    """Of a fine-tuning with 8 samples a step on two ranks; accumulation is 1, so that engines plan for one pass."""
    common = {"data_path": assets / "ragged.json", "max_steps": STEPS, "learning_rate": 3e-3, "model_max_length": 512}
    common["pretrain_mm_mlp_adapter"] = assets / "pre/mm_projector.bin"
    return {**common, "per_device_train_batch_size": 4, **changes}


@pytest.fixture(scope="module")
def by_rows(assets: Path) -> Path:
    """The same steps in one process, by rows."""
    return train(flags(assets, assets / "rows", "finetune", **options(assets, per_device_train_batch_size=8)))


@pytest.mark.parametrize("engine", ["torch", "zero2", "zero3_offload"])
def test_losses_and_weights_are_those_of_rows_and_a_resumed_run_is_equal(
    assets: Path, by_rows: Path, tmp_path: Path, engine: str
) -> None:
    """Resumed under torch alone: what an engine keeps is tested elsewhere, and the order of samples is the same."""
    changes = options(assets, max_tokens_per_device=300, save_strategy="steps", save_steps=STEPS // 2)
    if engine != "torch":
        changes["deepspeed"] = ROOT / f"configs/deepspeed/{engine}.json"
    run("forked", flags(assets, tmp_path / "out", "finetune", **changes), tmp_path / "log")
    assert losses(tmp_path / "out") == pytest.approx(losses(by_rows), abs=1e-4)
    expected, found = weights(by_rows), weights(tmp_path / "out")
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=1e-3, msg=name)
    then, now = summary(by_rows), summary(tmp_path / "out")
    assert now["counts"] == then["counts"]
    for name in ("samples", "tokens", "visual_tokens", "flops"):
        assert now["metrics"][name] == then["metrics"][name], name
    passes = now["metrics"]["batches"]
    assert passes % 2 == 1 or passes != 2 * STEPS, "ranks had as many micro-batches; the test shows nothing"
    if engine != "torch":
        return
    shutil.copytree(tmp_path / f"out/checkpoint-{STEPS // 2}", tmp_path / f"again/checkpoint-{STEPS // 2}")
    run("forked", flags(assets, tmp_path / "again", "finetune", **changes), tmp_path / "log2")
    assert_equal(tmp_path / "out", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "out")
