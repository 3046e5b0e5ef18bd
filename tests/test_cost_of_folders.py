"""Costs of folders whose `config.json` says something unusual: told right, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from llava.compression.config import CompressionConfig
from llava.cost.dimensions import CLIP_L_336
from llava.cost.flops import visual_tokens_per_layer
from llava.cost.overview import main
from llava.cost.seen_media import tower_of
from llava.cost.shapes import ModelShape

TEXT = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}
TOWER = {
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 28,
    "patch_size": 14,
}
OWN = {"model_type": "llava_llama", **TEXT}
CLIP = {"model_type": "clip_vision_model", **TOWER}


def of_transformers(model_type: str = "llava", text: str = "llama", **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": {"model_type": text, **TEXT}, "vision_config": CLIP, **fields}


def written(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (OWN | {"num_experts": 8}, "num_experts_per_tok is None"),
        (OWN | {"num_attention_heads": 5}, "num_attention_heads 5 do not divide"),
        (OWN | {"mm_vision_tower": "google/siglip-base"}, "'google/siglip-base', whose dimensions are not known"),
        (OWN | {"mm_vision_tower": 3}, "mm_vision_tower in .* is 3; it must be text"),
        (OWN | {"mm_projector_type": "cabstractor"}, "mm_projector_type in .* is 'cabstractor'; it must be linear"),
        (OWN | {"mm_projector_type": "mlp999999999x_gelu"}, "it must be linear"),
        (
            OWN | {"mm_vision_config": TOWER | {"image_size": 7}},
            "patch_size .* is 14; .* at most the image_size 7",
        ),
        (OWN | {"mm_vision_config": CLIP | {"model_type": 3}}, "model_type .* is 3; it must be text"),
        (OWN | {"mm_vision_config": CLIP | {"model_type": None}}, "model_type .* is None; it must be text"),
        (OWN | {"mm_video_tower": "x", "mm_video_config": TOWER | {"num_frames": "8"}}, "num_frames .* is '8'"),
        (OWN | {"mm_video_tower": "x", "mm_video_config": TOWER | {"num_frames": 0}}, "num_frames .* is 0"),
        (
            of_transformers() | {"vision_config": CLIP | {"hidden_size": 30}},
            "describes no model .*hidden size \\(30\\)",
        ),
        (of_transformers(text="qwen2_moe"), "a shared expert"),
        (of_transformers() | {"vision_config": {**TOWER, "model_type": "pixtral"}}, "is of model_type 'pixtral'"),
        (of_transformers(vision_feature_layer=[-2, -3]), "features of layer \\[-2, -3\\]"),
        (of_transformers(vision_feature_layer=-40), "features of layer -40"),
        (
            of_transformers("llava_next", image_grid_pinpoints=[[1, 2, 3]]),
            "image_grid_pinpoints is ..1, 2, 3",
        ),
        (of_transformers("llava_next", image_grid_pinpoints=[3]), "image_grid_pinpoints is \\[3\\]"),
    ],
    ids=str,
)
def test_what_describes_no_model_is_refused_in_a_sentence(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"(?s)^schedule: .*{said}"):
        main(["--model", written(tmp_path, config)])


@pytest.mark.parametrize(
    ("name", "fields", "patches", "layers"),
    [
        ("openai/clip-vit-large-patch14-336", {}, 576, 23),
        ("openai/clip-vit-large-patch14", {}, 256, 23),
        ("/data/clip-vit-large-patch14", {"mm_vision_select_layer": -1}, 256, 24),
        ("tower", {}, 4, 3),
    ],
)
def test_a_tower_that_is_only_named_has_its_own_dimensions(
    name: str, fields: dict[str, Any], patches: int, layers: int, tmp_path: Path
) -> None:
    written(tmp_path / "tower", {"model_type": "clip", "vision_config": TOWER})
    shape = ModelShape.of(written(tmp_path, OWN | fields | {"mm_vision_tower": name}))
    assert (tower_of(shape.vision).patches, tower_of(shape.vision).layers) == (patches, layers)
    assert visual_tokens_per_layer(CompressionConfig(), 4, shape.vision) == (patches,) * 4
    assert shape.tower_layers == (4 if name == "tower" else 24)


def test_a_named_tower_without_cls_gives_no_cls(tmp_path: Path) -> None:
    written(tmp_path / "tower", {"model_type": "siglip", "vision_config": TOWER})
    shape = ModelShape.of(written(tmp_path, OWN | {"mm_vision_tower": "tower"}))
    assert not tower_of(shape.vision).has_cls


def test_a_language_model_alone_is_asked_about_with_llavas_own_tower(tmp_path: Path) -> None:
    shape = ModelShape.of(written(tmp_path, {"model_type": "llama", **TEXT}))
    assert shape.vision == CLIP_L_336


def test_weights_of_a_mixture_whose_experts_have_the_width_of_an_mlp(tmp_path: Path) -> None:
    config = of_transformers(text="mixtral")
    config["text_config"] |= {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
    shape = ModelShape.of(written(tmp_path, config))
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(CONFIG_MAPPING["llava"].from_dict(config))
    layer = model.get_decoder().layers[0]
    norms = sum(weight.numel() for name, weight in layer.named_parameters() if "norm" in name)
    assert shape.decoder.layer_parameters == sum(weight.numel() for weight in layer.parameters()) - norms
    assert shape.total == sum(weight.numel() for weight in model.parameters())
    assert shape.decoder.head_norms is False
