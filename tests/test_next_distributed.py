"""LLaVA-NeXT on two ranks under ZeRO-3: images of other grids, and text alone, on either rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distributed import losses, run, weights
from tiny_llava import COLOURS, flags, write_assets
from tiny_next import picture

from llava.train.train import train

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow
SIZES = {"red": (40, 14), "green": (14, 40), "blue": (30, 31), "yellow": (9, 90)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three grids, and a third of the records without any."""
    folder = write_assets(tmp_path_factory.mktemp("assets"))
    for seed, name in enumerate(COLOURS):
        picture(SIZES[name], seed).save(folder / "images" / f"{name}.png")
    records = json.loads((folder / "chats.json").read_text())
    (folder / "chats.json").write_text(json.dumps(records[:8] + records[-4:]))
    crops = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", "model_max_length": 512}
    train(flags(folder, folder / "pre", "pretrain", max_steps=1, **crops))
    return folder


def options(assets: Path, **changes: object) -> dict[str, object]:
    return {
        "pretrain_mm_mlp_adapter": assets / "pre/mm_projector.bin",
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "unfreeze_mm_vision_tower": True,
        "mm_projector_lr": 1e-3,
        "mm_vision_tower_lr": 1e-4,
        "learning_rate": 1e-3,
        "model_max_length": 512,
        "max_steps": 6,
        "per_device_train_batch_size": 1,
        **changes,
    }


@pytest.mark.parametrize(("stage", "budget"), [(3, "tiny.yaml"), (3, "none")])
def test_two_ranks_have_the_losses_and_weights_of_one(assets: Path, tmp_path: Path, stage: int, budget: str) -> None:
    """With V2V nobody uses the newline, without it only ranks that see an image do; neither leaves one waiting."""
    compression = assets / budget if budget.endswith("yaml") else budget
    one = train(
        flags(
            assets,
            tmp_path / "one",
            "finetune",
            **options(assets, compression=compression, per_device_train_batch_size=2),
        )
    )
    config = {"compression": compression, "deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json"}
    run("forked", flags(assets, tmp_path / "two", "finetune", **options(assets, **config)), tmp_path / "log")
    assert losses(tmp_path / "two") == pytest.approx(losses(one), abs=1e-4)
    expected, found = weights(one), weights(tmp_path / "two")
    assert found.keys() == expected.keys() and "model.image_newline" in found
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3, msg=name)
