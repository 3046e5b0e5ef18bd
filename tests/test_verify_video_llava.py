"""`llava.verify` on Video-LLaVA's kinds with settings that the recorded cases do not have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.verify import verify_folder

GOLDEN = Path(__file__).parent / "golden" / "backbones"
Tensors = dict[str, Tensor]
Changed = Callable[..., tuple[str, str]]


@pytest.fixture
def changed(tmp_path: Path) -> Changed:
    """Status and reasons of a copied case, after its settings and outputs were changed in place."""
    (tmp_path / "models").symlink_to(GOLDEN / "models")

    def make(
        name: str,
        settings: Callable[[dict[str, Any]], object] = lambda case: None,
        outputs: Callable[[Tensors], object] = lambda tensors: None,
    ) -> tuple[str, str]:
        folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
        case = json.loads((folder / "case.json").read_text())
        tensors = load_file(folder / "outputs.safetensors")
        outputs(tensors)
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "outputs.safetensors")
        case["outputs"] = {key: {"shape": list(value.shape)} for key, value in tensors.items()}
        settings(case)
        (folder / "case.json").write_text(json.dumps(case))
        (outcome,) = verify_folder(folder)
        return outcome.status, "; ".join(outcome.reasons)

    return make


@pytest.mark.parametrize("layer", [-1, 1])
def test_features_of_another_layer_are_compared_and_its_scores_are_not_taken_for_those_recorded(
    changed: Changed, layer: int
) -> None:
    def from_layer(tensors: Tensors) -> None:
        tensors["features"] = tensors["hidden_states"][layer].clone()

    name = "video_tower/a_t8_gelu_b1"
    assert changed(name, lambda case: case.update(select_layer=layer), from_layer) == ("ok", "")


def test_frames_that_the_published_program_rounds_down_once_too_often_differ_by_design(changed: Changed) -> None:
    def one_more(tensors: Tensors) -> None:
        tensors["total_123_frames_15"] = torch.from_numpy(np.linspace(0, 122, 15, dtype=int))

    status, reasons = changed("frame_ids/a_table", outputs=one_more)
    assert status == "by design" and "floating point" in reasons


def test_frames_that_nobody_takes_fail(changed: Changed) -> None:
    def wrong(tensors: Tensors) -> None:
        tensors["total_123_frames_15"] = torch.from_numpy(np.linspace(0, 122, 15, dtype=int)) - 1

    assert changed("frame_ids/a_table", outputs=wrong)[0] == "FAIL"


def test_rows_are_padded_on_the_right_where_no_side_is_given(changed: Changed) -> None:
    settings = {"tokenizer_padding_side": None}
    assert changed("video_llava_prepare/a_four_kinds", lambda case: case.update(settings)) == ("ok", "")


def test_adapters_in_the_image_tower_of_a_model_are_merged(changed: Changed, tmp_path: Path) -> None:
    (tmp_path / "models").unlink()  # a link to the golden ones
    shutil.copytree(GOLDEN / "models/vl8", tmp_path / "models/vl8")
    file, plain, wrapped = (
        tmp_path / "models/vl8/model.safetensors",
        "image_tower.encoder.",
        "encoder.base_model.model.",
    )
    held = load_file(file)
    renamed = {
        name.replace(plain, f"image_tower.{wrapped}"): tensor for name, tensor in held.items() if plain in name
    } | {name: tensor for name, tensor in held.items() if plain not in name}
    stem = f"model.image_tower.image_tower.{wrapped}layers.0.self_attn.q_proj"
    down, up = torch.randn(2, 32), torch.randn(32, 2)
    renamed[f"{stem}.weight"] = renamed[f"{stem}.weight"] - up @ down * 8
    renamed |= {f"{stem}.lora_A.default.weight": down, f"{stem}.lora_B.default.weight": up}
    save_file(renamed, file)
    config = tmp_path / "models/vl8/image_tower/config.json"
    tower = json.loads(config.read_text())
    tower["vision_config"] |= {"lora_r": 2, "lora_alpha": 16}
    config.write_text(json.dumps(tower))
    assert changed("video_llava_prepare/a_four_kinds") == ("ok", "")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("video_tower/a_t8_gelu_b1", "add_time_attn", False),
        ("video_tower/a_t8_gelu_b1", "num_frames_of_config", 4),
        ("video_tower/a_t8_gelu_b1", "select_layer", 9),
        ("image_tower/b_quick_b2", "hidden_act", "gelu"),
        ("image_tower/b_quick_b2", "batch", 3),
        ("image_processing/d_33x34_pad", "image_aspect_ratio", "stretch"),
        ("image_processing/d_33x34_pad", "height", 34),
        ("video_processing/d_61x45_8of3", "num_frames", 10**9),
        ("video_processing/d_61x45_8of3", "flipped", "no"),
        ("video_llava_prepare/b_left_truncated", "entries", ["image", "video", "image", "image"]),
        ("video_llava_prepare/b_left_truncated", "num_frames", 4),
        ("video_llava_prepare/b_left_truncated", "tokenizer_model_max_length", -60),
        ("video_llava_prepare/b_left_truncated", "tokenizer_padding_side", "top"),
        ("video_llava_prepare/b_left_truncated", "row_lengths", "all"),
        ("next_merge/a_unpad", "image_aspect_ratio", 3),
        ("next_video/b_average_grid", "frames", 4),
        ("next_video/b_average_grid", "pool_stride_used", 4),
        ("next_prepare/e_unpad_left_truncated", "images_form", "a heap"),
        ("next_prepare/e_unpad_left_truncated", "tokenizer_model_max_length", "40"),
    ],
)
def test_a_case_that_says_other_things_than_it_holds_is_not_passed(
    changed: Changed, name: str, key: str, value: object
) -> None:
    status, reasons = changed(name, lambda case: case.update({key: value}))
    assert status == "unreadable" and ("case.json" in reasons and (key in reasons or "entry 0" in reasons))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("next_prepare/e_unpad_left_truncated", "row_lengths", [40, 40, 8]),
        ("next_merge/a_unpad", "tokens", [70, 68, 76, 36, 36, 28, 17]),
        ("next_video/b_average_grid", "tokens", 19),
    ],
)
def test_counts_of_case_json_are_compared(changed: Changed, name: str, key: str, value: object) -> None:
    status, reasons = changed(name, lambda case: case.update({key: value}))
    assert (status, reasons) == ("FAIL", f"{key} differs in 1 places")
