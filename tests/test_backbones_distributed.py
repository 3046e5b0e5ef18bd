"""Two processes that hold one model together, one with a picture, the other with text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distributed import ROOT, assert_equal, losses, run, weights
from tiny_llava import write_assets
from tiny_onevision import write_onevision
from tiny_qwen import write_qwen
from tiny_qwen3 import write_qwen3_moe

from llava.checkpoints.consolidation import consolidate
from llava.checkpoints.opening import open_model
from llava.train.train import train

pytestmark = pytest.mark.slow
ZERO = ROOT / "configs/deepspeed/zero3.json"
BUDGET = "v2v: {dominant: 2, contextual: 1, cluster_width: 2}\nt2v: {layers: [2, 3], keep: [0.5, 0.0]}\n"
ONE_EACH: dict[str, object] = {"per_device_train_batch_size": 1, "deepspeed": ZERO}
STEPS = 4


def assert_like_one_process(alone: Path, together: Path) -> None:
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    expected, found = weights(alone), weights(together)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def flags(folder: Path, output: Path, **changes: object) -> list[str]:
    """Samples in the order of the file, a picture and text by turns; all parts are trained."""
    options: dict[str, object] = {
        "model_name_or_path": folder / "model",
        "image_folder": folder / "images",
        "data_path": folder / "turns.json",
        "output_dir": output,
        "compression": folder / "budget.yaml",
        "use_cpu": True,
        "bf16": False,
        "model_max_length": 256,
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
        "max_steps": STEPS,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": STEPS // 2,
        "disable_tqdm": True,
        "seed": 7,
    }
    options |= changes
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A budget, and records of which every other one shows a picture; tests add a model."""
    write_assets(tmp_path)
    (tmp_path / "budget.yaml").write_text(BUDGET)
    records = json.loads((tmp_path / "chats.json").read_text())
    pictures, texts = ([one for one in records if ("image" in one) == shows] for shows in (True, False))
    turns = [one for pair in zip(pictures, texts, strict=False) for one in pair]
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    return tmp_path


@pytest.mark.parametrize(("write", "stage"), [(write_qwen3_moe, 3), (write_onevision, 2)])
def test_a_picture_on_one_rank_and_text_on_the_other_train_as_one_process_does(
    folder: Path, write: Callable[[Path], Path], stage: int
) -> None:
    write(folder / "model")
    short: dict[str, object] = {"max_steps": 2, "save_strategy": "no"}
    alone = train(flags(folder, folder / "alone", **short))
    ranks = ONE_EACH | {"deepspeed": ROOT / f"configs/deepspeed/zero{stage}.json"}
    run("forked", flags(folder, folder / "ranks", **short | ranks), folder / "log")
    assert_like_one_process(alone, folder / "ranks")


def test_qwen_under_zero_3_goes_on_from_its_checkpoint_and_its_pieces_are_put_together(folder: Path) -> None:
    write_qwen(folder / "model")
    alone = train(flags(folder, folder / "alone"))
    run("forked", flags(folder, folder / "ranks", **ONE_EACH), folder / "log")
    assert_like_one_process(alone, folder / "ranks")
    shutil.copytree(folder / "ranks/checkpoint-2", folder / "again/checkpoint-2")
    run("forked", flags(folder, folder / "again", **ONE_EACH), folder / "log2")
    assert_equal(folder / "ranks", folder / "again")
    consolidate(folder / "ranks/checkpoint-2", folder / "whole")
    whole = open_model(str(folder / "whole"), device="cpu", dtype=torch.float32).model
    saved = open_model(str(folder / "ranks/checkpoint-2"), device="cpu", dtype=torch.float32).model
    assert whole.compression == saved.compression and whole.compression.t2v is not None
    assert all(torch.equal(weight, saved.get_parameter(name)) for name, weight in whole.named_parameters())
