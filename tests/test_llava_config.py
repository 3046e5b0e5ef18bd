"""LLaVA's configuration: defaults where a file says nothing, foreign fields kept, files that LLaVA itself can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from llava.checkpoints.settings_files import check_fields
from llava.model.llava_config import LLAVA_FIELDS, LlavaConfig

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def written(config: LlavaConfig, folder: Path) -> dict[str, object]:
    config.save_pretrained(folder)
    content: dict[str, object] = json.loads((folder / "config.json").read_text())
    return content


@pytest.mark.parametrize(
    "nothing", [{}, {"mm_projector_type": None, "image_aspect_ratio": None}, {"mm_projector_type": ""}]
)
def test_what_a_file_leaves_open_or_null_has_llavas_default(nothing: dict[str, object]) -> None:
    config = LlavaConfig(**SIZES, mm_vision_tower="openai/clip", **nothing)
    said = (config.mm_projector_type, config.mm_vision_select_layer, config.mm_vision_select_feature)
    assert (*said, config.image_aspect_ratio, config.mm_patch_merge_type) == ("linear", -2, "patch", "square", "flat")
    assert config.compression is None and config.conversation_template is None


def test_a_language_model_is_written_without_fields_that_llava_would_take_for_a_tower(tmp_path: Path) -> None:
    # LLaVA builds a tower wherever config.json has mm_vision_tower, null or not.
    assert not set(written(LlavaConfig(**SIZES), tmp_path)) & set(LLAVA_FIELDS)


def test_a_llava_is_written_with_what_llava_reads_without_a_default_and_without_nulls(tmp_path: Path) -> None:
    content = written(LlavaConfig(**SIZES, mm_vision_tower="openai/clip"), tmp_path)
    assert content["mm_vision_select_layer"] == -2 and content["mm_projector_type"] == "linear"
    assert "mm_vision_config" not in content and "conversation_template" not in content


def test_fields_that_nobody_here_knows_come_back(tmp_path: Path) -> None:
    config = LlavaConfig(**SIZES, mm_vision_tower="openai/clip", mm_spatial_pool_stride=2, theirs={"a": [1]}, none=None)
    written(config, tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, LlavaConfig)
    assert (again.mm_spatial_pool_stride, again.theirs, again.none) == (2, {"a": [1]}, None)
    assert again.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize("field", LLAVA_FIELDS)
def test_every_field_of_llavas_is_held_against_its_type_before_a_library_reads_it(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} in config.json"):
        check_fields({field: ["something else"]}, "config.json")
