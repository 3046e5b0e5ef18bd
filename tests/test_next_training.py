"""LLaVA-NeXT trains adapters over 4 bits, goes on from a checkpoint as if nothing had been, and cuts long samples."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from distributed import assert_equal, losses
from tiny_llava import COLOURS, flags, write_assets
from tiny_next import picture

from llava.checkpoints.opening import open_model
from llava.train.train import train

SIZES = {"red": (40, 14), "green": (14, 40), "blue": (30, 31), "yellow": (9, 90)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    for seed, name in enumerate(COLOURS):
        picture(SIZES[name], seed).save(folder / "images" / f"{name}.png")
    return folder


def next_flags(assets: Path, output: Path, **changes: object) -> list[str]:
    crops = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "model_max_length": 512}
    return flags(assets, output, "finetune", **{**crops, "per_device_train_batch_size": 2, **changes})


def test_adapters_over_four_bits_open_over_their_base(assets: Path, tmp_path: Path) -> None:
    adapters = {"lora_enable": True, "lora_r": 4, "bits": 4, "mm_projector_lr": 1e-3}
    out = train(next_flags(assets, tmp_path / "out", max_steps=2, **adapters))
    held = torch.load(out / "non_lora_trainables.bin", weights_only=True)
    (newline,) = (tensor for name, tensor in held.items() if name.endswith("image_newline"))
    model = open_model(str(out), str(assets / "lm"), device="cpu").model
    assert torch.equal(model.model.image_newline, newline.float())
    assert model.config.image_grid_pinpoints == [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]


def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(assets: Path, tmp_path: Path) -> None:
    changes = {"unfreeze_mm_vision_tower": True, "mm_vision_tower_lr": 1e-4, "max_steps": 4}
    saving = {"save_strategy": "steps", "save_steps": 2}
    train(next_flags(assets, tmp_path / "whole", **changes, **saving))
    shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "again/checkpoint-2")
    train(next_flags(assets, tmp_path / "again", **changes, **saving))
    assert_equal(tmp_path / "whole", tmp_path / "again")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")


def test_a_sample_that_is_too_long_loses_its_end(assets: Path, tmp_path: Path) -> None:
    """An image has up to 76 tokens and its text some 60; where the answer goes, too, nothing is learnt of it."""
    train(next_flags(assets, tmp_path / "out", compression="none", model_max_length=90, max_steps=2))
    summary = json.loads((tmp_path / "out/train_summary.json").read_text())
    assert all(math.isfinite(point["loss"]) for point in summary["curve"])
    assert summary["metrics"]["mean_sequence_tokens"] <= 90
