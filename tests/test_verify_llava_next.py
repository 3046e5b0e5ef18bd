"""`llava.verify` on LLaVA-NeXT's kinds: damaged outputs are seen, incomplete cases are named, other settings work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llava.verify import verify_folder

GOLDEN = Path(__file__).parent / "golden" / "backbones"
Tensors = dict[str, Tensor]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Status and reasons of a copied case, after its settings and tensors were changed in place."""
    (tmp_path / "models").symlink_to(GOLDEN / "models")

    def make(name: str, **changes: Callable[[Any], object]) -> tuple[str, str]:
        folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
        case = json.loads((folder / "case.json").read_text())
        for part in ("inputs", "outputs"):
            tensors = load_file(folder / f"{part}.safetensors")
            changes.get(part, lambda _: None)(tensors)
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{part}.safetensors")
            case[part] = {key: {"shape": list(value.shape)} for key, value in tensors.items()}
        changes.get("settings", lambda _: None)(case)
        (folder / "case.json").write_text(json.dumps(case))
        (outcome,) = verify_folder(folder)
        return outcome.status, "; ".join(outcome.reasons)

    return make


@pytest.mark.parametrize(
    ("name", "tensor", "amount"),
    [
        ("anyres_choice/a_pinpoints_of_1.6", "best", 336),
        ("anyres_choice/a_pinpoints_of_1.6", "map_after_unpad", 1),
        ("anyres_choice/b_grids_1x1_to_6x6", "tokens_spatial_unpad", 1),
        ("anyres_pixels/a_28px", "crops_2", 1e-4),
        ("next_merge/c_anyres_max_9", "merged_3", 1e-4),
        ("next_video/b_average_grid", "merged", 1e-4),
        ("next_prepare/c_unpad_b4", "inputs_embeds", 1e-3),
        ("next_prepare/c_unpad_b4", "logits_last", 1e-3),
        ("next_prepare/c_unpad_b4", "loss", 1e-4),
        ("next_prepare/e_unpad_left_truncated", "position_ids", 1),
        ("next_prepare/a_flat_b4", "projected", 1e-3),
    ],
)
def test_a_damaged_output_fails(changed, name, tensor, amount):
    def damage(tensors: Tensors) -> None:
        tensors[tensor].view(-1)[-1] += amount

    status, reasons = changed(name, outputs=damage)
    assert status == "FAIL" and reasons.startswith(tensor)


def test_rows_too_many_or_too_few_fail(changed):
    def shorten(tensors: Tensors) -> None:
        tensors["merged_0"] = tensors["merged_0"][:-1]

    assert changed("next_merge/a_unpad", outputs=shorten)[0] == "FAIL"


def test_a_newline_that_should_not_be_there_fails(changed):
    status, reasons = changed(
        "next_prepare/g_uncut_stacked_no_newline", settings=lambda case: case.update(images_form="list of tensors")
    )
    assert status == "FAIL" and "inputs_embeds has shape" in reasons


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("next_merge/a_unpad", lambda case: case.pop("patches_per_side"), "no patches_per_side"),
        ("next_merge/a_unpad", lambda case: case.update(crop_size="336"), "crop_size is '336'"),
        ("next_video/b_average_grid", lambda case: case.pop("mm_newline_position"), "no mm_newline_position"),
        ("anyres_choice/a_pinpoints_of_1.6", lambda case: case.pop("pinpoints"), "no pinpoints"),
    ],
)
def test_a_setting_that_is_missing_makes_a_case_unreadable(changed, name, settings, said):
    status, reasons = changed(name, settings=settings)
    assert status == "unreadable" and said in reasons


def test_inputs_that_are_missing_make_a_case_unreadable(changed):
    assert changed("next_merge/a_unpad", inputs=lambda held: held.pop("features_1"))[0] == "unreadable"
    status, reasons = changed("next_prepare/c_unpad_b4", inputs=lambda held: held.pop("pixel_values_4"))
    assert status == "unreadable" and "4 pictures and 5 sizes, but the rows use up 5" in reasons
    status, reasons = changed("anyres_pixels/a_28px", inputs=lambda held: held.update(image_0_u8=torch.zeros(1, 3, 3)))
    assert status == "unreadable" and "must be uint8" in reasons


def test_rows_without_labels_are_cut_as_well(changed):
    def forget(tensors: Tensors) -> None:
        for name in ("labels", "loss"):
            tensors.pop(name, None)

    name = "next_prepare/e_unpad_left_truncated"
    assert changed(name, inputs=forget, outputs=forget) == ("ok", "")


def test_a_loss_of_nothing_differs_by_design(changed):
    def unlabelled(tensors: Tensors) -> None:
        tensors["labels"].fill_(-100)
        if "loss" in tensors:
            tensors["loss"].fill_(float("nan"))

    status, reasons = changed("next_prepare/f_unpad_thread", inputs=unlabelled, outputs=unlabelled)
    assert status == "by design" and "nothing is labelled" in reasons


def test_canvases_in_words_and_another_ratio_reach_the_model(changed):
    words = "[[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]"
    settings = {"image_aspect_ratio": "anyres_max_100", "image_grid_pinpoints": words}
    assert changed("next_prepare/c_unpad_b4", settings=lambda case: case.update(settings)) == ("ok", "")


def test_uncut_images_in_a_tensor_of_crops_keep_their_newline(changed):
    def of_crops(tensors: Tensors) -> None:
        for name in ("pixel_values_0", "pixel_values_1"):
            tensors[name] = tensors[name][None]

    status, reasons = changed("next_prepare/g_uncut_stacked_no_newline", inputs=of_crops)
    assert status == "FAIL" and "but [2, 22, 40] was recorded" in reasons
