"""Two ranks train a Video-LLaVA under ZeRO although one sees videos where the other sees images or text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distributed import ROOT, losses, run
from tiny_video import video_flags, write_training

from llava.train.train import train

pytestmark = pytest.mark.slow


def records() -> list[dict[str, Any]]:
    """Neighbours go to different ranks: each pair of kinds meets, and text beside text."""
    shown = {
        "video": ("<video>\nWhat happens?", {"video": "clip1"}),
        "image": ("<image>\nWhich colour?", {"image": "red.png"}),
        "both": ("<video><image><image>\nCompare.", {"video": "clip2", "image": ["red.png", "blue.png"]}),
        "text": ("What is blue?", {}),
    }
    order = ("video", "text", "image", "video", "both", "image", "text", "text", "image", "image", "text", "both")
    found = []
    for number, kind in enumerate(order):
        question, media = shown[kind]
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "a red three"}]
        found.append({"id": f"{kind}-{number}", "conversations": turns, **media})
    return found


@pytest.mark.parametrize(("stage", "trained"), [(3, False), (2, True)])
def test_ranks_with_videos_images_and_text_neither_hang_nor_disagree(stage: int, trained: bool, tmp_path: Path) -> None:
    """Under ZeRO-3 weights are gathered together; under ZeRO-2 the gradients of trained towers are."""
    assets = write_training(tmp_path / "assets")
    train(video_flags(assets, assets / "pre", "pretrain", max_steps=1))
    (tmp_path / "mixed.json").write_text(json.dumps(records()))
    changes: dict[str, object] = {
        "pretrain_mm_mlp_adapter": assets / "pre/mm_projector.bin",
        "data_path": tmp_path / "mixed.json",
        "train_sampling_strategy": "sequential",
        "group_by_modality_length": False,
        "per_device_train_batch_size": 1,
        "max_steps": 6,
        "unfreeze_mm_vision_tower": trained,
        "learning_rate": 1e-3,
    }
    config = {"deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json"}
    run("forked", video_flags(assets, tmp_path / "two", "finetune", **changes, **config), tmp_path / "log")
    single = changes | {"per_device_train_batch_size": 2}
    train(video_flags(assets, tmp_path / "one", "finetune", **single))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
