"""LLaVA-OneVision in LLaVA-NeXT's own layout (`lmms-lab/llava-onevision-*`): opened, asked, costed, converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_backbones_train import BUDGET, flags
from tiny_llava import write_assets
from tiny_onevision import PINPOINTS, write_lmms, write_onevision
from transformers import AutoModelForImageTextToText, LlavaOnevisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from llava.checkpoints.contents import Kind, examine
from llava.checkpoints.conversion import convert
from llava.checkpoints.opening import Opened, open_model
from llava.common.onevision_layout import layout_config
from llava.common.onevision_layout import onevision_config as in_transformers_terms
from llava.compression import CompressionConfig
from llava.cost.shapes import ModelShape, model_kind, model_shape
from llava.data.check.conversations import load_inputs
from llava.inference.batches import Prompt
from llava.inference.engine import Engine
from llava.inference.generation import GenerationSettings
from llava.model.families.llava_onevision import CompressedLlavaOnevision
from llava.model.random_weights import random_config
from llava.train.train import train

GREEDY = GenerationSettings(temperature=0, max_new_tokens=6)
OF_7B = {
    "architectures": ["LlavaQwenForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": "(1x1),...,(6x6)",
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "mm_hidden_size": 1152,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "bilinear",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "model_type": "llava",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 152064,
}
"""What `lmms-lab/llava-onevision-qwen2-7b-ov` says of its model."""


def opened(folder: Path, **options: Any) -> Opened:
    return open_model(str(folder), device="cpu", dtype=torch.float32, **options)


def picture(width: int, height: int) -> Image.Image:
    noise = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(width * height))
    return Image.fromarray(noise.byte().numpy())


def asked(engine: Engine, *sizes: tuple[int, int]) -> str:
    return engine.answer([Prompt("What is this?", tuple(picture(*size) for size in sizes))], GREEDY)[0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_of_lmms_lab_opens_and_is_transformers_model_of_the_same_weights(tied: bool, tmp_path: Path) -> None:
    stock = write_lmms(tmp_path / "lmms", tied=tied)
    found = opened(tmp_path / "lmms")
    assert type(found.model) is CompressedLlavaOnevision and found.context == 2048
    for size in ((100, 60), (31, 200), (1, 1), (56, 56), (300, 300)):
        pixels = LlavaOnevisionImageProcessorPil(
            size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3, image_grid_pinpoints=PINPOINTS
        )(images=[picture(*size)], return_tensors="pt")
        inputs = Engine(found.model, found.tokenizer, found.preprocessor).inputs
        shown = inputs.image(picture(*size), "a picture")
        assert torch.equal(shown.inputs["pixel_values"], pixels["pixel_values"][0]), "SigLIP's mean and deviation"
        ids = torch.tensor([[5, 6, *shown.ids, 7, 8, 9]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels}
        with torch.no_grad():
            torch.testing.assert_close(found.model(**given).logits, stock(**given).logits, atol=1e-5, rtol=0)


def test_it_is_asked_as_its_own_program_asks_it_with_the_systems_words(tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms")
    found = opened(tmp_path / "lmms", compression={"v2v": {"dominant": 9, "contextual": 2}})
    engine = Engine(found.model, found.tokenizer, found.preprocessor)
    assert engine.inputs.written(["Hi"]) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert asked(engine, (100, 60)) and asked(engine, (100, 60), (31, 200))


def test_what_is_saved_of_it_is_in_transformers_format_and_opens_there(tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms", compression={"t2v": {"layers": [2], "keep": [0.5]}})
    found = opened(tmp_path / "lmms")
    assert found.model.compression.t2v.layers == (2,), "the budget in its config.json"
    for part in (found.model, found.preprocessor):
        part.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    assert asked(Engine(*_parts(again)), (100, 60)) == asked(Engine(*_parts(found)), (100, 60))
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    for name, weight in found.model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight), name


def _parts(found: Opened) -> tuple[Any, Any, Any]:
    return found.model, found.tokenizer, found.preprocessor


def test_it_is_converted_to_transformers_format_and_back_without_loss(tmp_path: Path) -> None:
    budget = {"t2v": {"layers": [2], "keep": [0.5]}}
    write_lmms(tmp_path / "lmms", tied=True, compression=budget)
    source = load_file(tmp_path / "lmms" / "model.safetensors")
    convert(str(tmp_path / "lmms"), tmp_path / "hf", "hf")
    convert(str(tmp_path / "hf"), tmp_path / "back", "llava")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == source.keys() and all(torch.equal(back[name], source[name]) for name in source)
    first, again, between = (opened(tmp_path / name) for name in ("lmms", "back", "hf"))
    for other in (again, between):
        assert asked(Engine(*_parts(other)), (100, 60)) == asked(Engine(*_parts(first)), (100, 60))
        assert other.model.compression.t2v.layers == (2,)
        assert other.model.config.text_config.to_dict() == first.model.config.text_config.to_dict()
    said = json.loads((tmp_path / "back" / "config.json").read_text())
    assert said["rope_theta"] == 10000.0 and said["image_grid_pinpoints"] == [pair[::-1] for pair in PINPOINTS]
    for name, to in (("lmms", "llava"), ("hf", "hf")):
        with pytest.raises(ValueError, match=f"which --to {to} asks for; it can be used as it is"):
            convert(str(tmp_path / name), tmp_path / "other", to)


def test_the_known_tower_is_named_in_the_layout_and_what_it_cannot_say_is_refused(tmp_path: Path) -> None:
    described = in_transformers_terms(OF_7B, tmp_path)
    there = LlavaOnevisionConfig.from_dict(described).to_dict()
    said, tower = layout_config(there, "a")
    assert said["mm_vision_tower"] == "google/siglip-so400m-patch14-384" and tower is None
    assert (
        in_transformers_terms(said, tmp_path)["vision_config"]
        == in_transformers_terms(OF_7B, tmp_path)["vision_config"]
    )
    with pytest.raises(ValueError, match="vision_feature_layer in 'a' is -2; LLaVA-NeXT's own layout can only say -1"):
        layout_config(there | {"vision_feature_layer": -2}, "a")
    write_onevision(tmp_path / "hf")  # its processor has CLIP's mean, as transformers' default
    with pytest.raises(ValueError, match=r"image_mean of the image processor of .*; LLaVA-NeXT's own layout"):
        convert(str(tmp_path / "hf"), tmp_path / "other", "llava")
    assert not (tmp_path / "other").exists()


def test_adapters_that_were_trained_on_it_open_over_it(tmp_path: Path) -> None:
    write_assets(tmp_path)
    write_lmms(tmp_path / "lmms")
    (tmp_path / "budget.yaml").write_text(json.dumps(BUDGET))
    folder = train(flags(tmp_path, "lmms", tmp_path / "lora", max_steps=1, lora_enable=True, lora_r=4))
    base, found = opened(tmp_path / "lmms").model, opened(folder).model
    changed = {name for name, weight in found.named_parameters() if not torch.equal(weight, base.get_parameter(name))}
    assert {name.split(".")[1] for name in changed} == {"language_model", "multi_modal_projector"}
    assert found.compression.t2v.layers == (2, 3)


def test_the_published_configuration_is_that_of_the_published_conversion(tmp_path: Path) -> None:
    made = LlavaOnevisionConfig.from_dict(in_transformers_terms(OF_7B, tmp_path))
    usual = LlavaOnevisionConfig()  # transformers' defaults are those of the conversion
    assert made.vision_config.to_dict() == usual.vision_config.to_dict() | {"dtype": made.vision_config.dtype}
    assert sorted(made.image_grid_pinpoints) == sorted(usual.image_grid_pinpoints)
    assert made.image_grid_pinpoints[:2] == [[384, 384], [768, 384]], "(1x2) is one crop across and two down"
    for field in ("image_token_id", "video_token_id", "vision_feature_layer", "vision_feature_select_strategy"):
        assert getattr(made, field) == getattr(usual, field)
    assert made.text_config.rope_parameters["rope_theta"] == 1e6 and made.text_config.sliding_window is None
    listed = OF_7B | {
        "image_grid_pinpoints": [[384, 768], [768, 384]],
        "model_type": "llava_qwen",
        "architectures": None,
    }
    assert in_transformers_terms(listed, tmp_path)["image_grid_pinpoints"] == [[768, 384], [384, 768]]


def test_costs_and_shapes_are_told_from_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OF_7B))
    there = tmp_path / "hf"
    LlavaOnevisionConfig.from_dict(in_transformers_terms(OF_7B, tmp_path)).save_pretrained(there)
    assert model_kind(str(tmp_path)) == "llava-onevision"
    assert model_shape(str(tmp_path)) == model_shape(str(there))
    assert ModelShape.of(str(tmp_path)).total == ModelShape.of(str(there)).total
    assert random_config(str(tmp_path)).model_type == "llava_onevision"
    CompressionConfig.from_preset("onevision-share-70").check_made_for(OF_7B, 28)


def test_the_data_check_reads_data_as_such_a_model_is_trained(tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms")
    assert load_inputs(str(tmp_path / "lmms")).written(["Hi"]).startswith("<|im_start|>system\nYou are")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"mm_vision_tower": "openai/clip-vit-large-patch14-336"},
            "patch14-336'; known is google/siglip",
        ),
        ({"mm_vision_tower": None}, "mm_vision_tower in .* is None; known is"),
        ({"mm_newline_position": "grid"}, "mm_newline_position .* 'grid'; .* whose mm_newline_position is 'one_token'"),
        ({"mm_spatial_pool_mode": "average"}, "whose mm_spatial_pool_mode is 'bilinear'. It concerns videos alone"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride .* is 4"),
        ({"mm_resampler_type": "spatial_pool"}, "mm_resampler_type .* 'spatial_pool'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type .* 'linear'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type .* 'flat'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio .* 'anyres'; LLaVA-OneVision's is anyres_max_9"),
        ({"image_grid_pinpoints": [[57, 56]]}, "image_grid_pinpoints holds 57 x 56"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end .* True"),
        ({"mm_hidden_size": 17}, "mm_hidden_size .* is 17, but its vision tower .* is 16 wide"),
        ({"vocab_size": 335}, "marks <image> and <video> have the ids"),
        ({"vocab_size": "large"}, "vocab_size in .* is 'large'; it must be a whole number"),
    ],
)
def test_what_is_not_llava_onevision_is_refused_in_words(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms", **changes)
    with pytest.raises(ValueError, match=said):
        examine(tmp_path / "lmms")


@pytest.mark.parametrize("wrong", [{"image_size": "x"}, {"image_size": 0}, {"num_hidden_layers": 1}, {"hidden_act": 3}])
def test_a_tower_that_no_file_should_say_is_refused_in_words(wrong: dict[str, Any], tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms")
    path = tmp_path / "lmms/siglip/config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"vision_config": held["vision_config"] | wrong}))
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} (of|in) the vision tower 'siglip' is"):
        examine(tmp_path / "lmms")


def test_no_weight_of_it_is_made_up(tmp_path: Path) -> None:
    write_lmms(tmp_path / "lmms")
    assert examine(tmp_path / "lmms").kind is Kind.FAMILY
    path = tmp_path / "lmms" / "model.safetensors"
    held = load_file(path)
    for change, said in (
        ({"model.mm_projector.2.bias": None}, "lacks 'model.multi_modal_projector.linear_2.bias'"),
        ({"model.image_newline": None}, "lacks 'model.image_newline'"),
        ({"model.image_newline": torch.zeros(3)}, r"has shape \(3,\), but the model that config.json describes needs"),
        (
            {"model.layers.9.mlp.up_proj.weight": torch.zeros(2)},
            "holds 'model.language_model.layers.9.mlp.up_proj.weight'",
        ),
        ({"model.faster_token": torch.zeros(2)}, "holds 'model.faster_token'"),
        (
            {"model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias": torch.zeros(32)},
            "vision_tower.encoder.layers.3.mlp.fc1.bias' of shape",
        ),
    ):
        new: dict[str, Any] = held | change
        save_file({name: one for name, one in new.items() if one is not None}, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=said):
            opened(tmp_path / "lmms")
    path.rename(path.with_name("mm_projector.bin"))
    with pytest.raises(ValueError, match="only whole models are opened in this layout"):
        examine(tmp_path / "lmms")
