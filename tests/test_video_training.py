"""Video-LLaVA is trained: both phases, adapters, limits of length, mirrored videos, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llava import flags
from tiny_video import FRAMES, video_flags, write_training

from llava.checkpoints.opening import open_model
from llava.train.arguments import parse_arguments
from llava.train.building import load_model, load_tokenizer, make_data, make_held_out
from llava.train.train import train

LORA: dict[str, object] = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under `pretrain` a projector, under `model` a whole Video-LLaVA."""
    folder = write_training(tmp_path_factory.mktemp("assets"))
    train(video_flags(folder, folder / "pretrain", "pretrain", version="v1", data_path=folder / "mixed.json"))
    projector = folder / "pretrain/mm_projector.bin"
    train(video_flags(folder, folder / "model", "finetune", pretrain_mm_mlp_adapter=projector))
    return folder


def prepared(assets: Path, **changes: object) -> Any:
    """Model, dataset and collator that a command line would train with."""
    model_args, data_args, args = parse_arguments(video_flags(assets, assets / "unused", "finetune", **changes))
    tokenizer = load_tokenizer(model_args, args)
    model = load_model(model_args, data_args, args, tokenizer)
    length = args.model_max_length if data_args.tokenizer_model_max_length else None
    return model, *make_data(model, tokenizer, model_args, data_args, encoded_length=length), data_args


def test_a_trained_model_opens_with_its_towers_and_answers(assets: Path) -> None:
    held = load_file(assets / "model/model.safetensors")
    for kind in ("image", "video"):
        own = load_file(assets / f"{kind}-tower/model.safetensors")
        name = "encoder.layers.1.mlp.fc1.weight"
        assert torch.equal(held[f"model.{kind}_tower.{kind}_tower.{name}"], own[f"vision_model.{name}"])
    config = json.loads((assets / "model/config.json").read_text())
    assert config["mm_video_config"]["num_frames"] == FRAMES and "mm_vision_tower" not in config
    opened = open_model(str(assets / "model"), device="cpu")
    assert opened.preprocessor["video"].num_frames == FRAMES and opened.preprocessor["image"] is not None
    projector = open_model(str(assets / "pretrain"), str(assets / "lm"), device="cpu").model
    assert projector.get_video_tower().is_loaded and not torch.equal(
        projector.model.mm_projector[0].weight, opened.model.model.mm_projector[0].weight
    )


@pytest.mark.parametrize("bits", [16, 4])
def test_adapters_are_trained_over_it_and_are_merged(bits: int, assets: Path, tmp_path: Path) -> None:
    start = {"model_name_or_path": assets / "model", "image_tower": None, "video_tower": None}
    train(video_flags(assets, tmp_path / "lora", "finetune", bits=bits, **start, **LORA))
    adapted = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert adapted and not any("tower" in name for name in adapted)
    opened = open_model(str(tmp_path / "lora"), device="cpu").model
    assert opened.get_video_tower().num_frames == FRAMES
    own = load_file(assets / "model/model.safetensors")["model.video_tower.video_tower.pre_layrnorm.weight"]
    assert torch.equal(opened.get_video_tower().model.pre_layrnorm.weight, own)


def test_a_run_that_is_gone_on_with_ends_with_the_same_weights(assets: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "video_flip": 0.5}
    train(video_flags(assets, tmp_path / "once", "finetune", **changes))
    shutil.copytree(tmp_path / "once/checkpoint-1", tmp_path / "again/checkpoint-1")
    train(video_flags(assets, tmp_path / "again", "finetune", **changes))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "again"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_videos_images_and_text_are_batched_in_the_order_of_their_marks(assets: Path) -> None:
    model, dataset, collator, _ = prepared(assets)
    media = [[medium.dim() for medium in sample["images"]] for sample in dataset]
    assert media == [[4], [4], [4], [4, 3], [3], []]
    batch = collator([dataset[number] for number in range(6)])
    per_mark = model.visual_tokens_per_image()
    assert batch["plan"].counts == (per_mark,) * (4 * FRAMES + 2)
    alone = collator([dataset[5]])
    assert alone["images"].shape == (1, 3, 28, 28) and alone["plan"].counts == ()
    for held in (batch, alone):
        given = {name: held[name] for name in ("input_ids", "attention_mask", "labels", "query_mask", "images", "plan")}
        assert torch.isfinite(model(**given).loss)


def test_two_lengths_limit_what_is_written_and_what_it_becomes(assets: Path) -> None:
    _, whole, _, _ = prepared(assets)
    length = len(whole[0]["input_ids"])
    model, cut, _, _ = prepared(assets, model_max_length=length - 2, tokenizer_model_max_length=1000)
    assert model.config.tokenizer_model_max_length == 1000
    assert len(cut[0]["input_ids"]) == length - 2 and cut[0]["truncated"] and len(cut[0]["images"]) == 1
    visual = model.visual_tokens_per_image() * FRAMES
    _, cut, _, _ = prepared(assets, model_max_length=1000, tokenizer_model_max_length=length + visual - FRAMES - 1)
    assert len(cut[0]["input_ids"]) == length - 1 and len(cut[0]["images"]) == 1
    start = whole[0]["input_ids"].tolist().index(-200)
    _, cut, _, _ = prepared(assets, model_max_length=max(16, start + 2), tokenizer_model_max_length=1000)
    assert cut[0]["images"] == [] and len(cut[0]["input_ids"]) == start, "a video is kept whole or not at all"


def test_videos_are_mirrored_in_training_alone_and_the_same_ones_again(assets: Path) -> None:
    _, plain, _, _ = prepared(assets)
    _, all_of_them, _, data_args = prepared(assets, video_flip=1.0, eval_data_path=assets / "mixed.json")
    held_out = make_held_out(all_of_them, data_args)
    assert held_out is not None
    for number in range(3):
        clip = plain[number]["images"][0]
        assert torch.equal(all_of_them[number]["images"][0], clip.flip(-1))
        assert torch.equal(held_out[number]["images"][0], clip)
    _, half, _, _ = prepared(assets, video_flip=0.5)
    assert all(torch.equal(half[number]["images"][0], half[number]["images"][0]) for number in range(3))
    image = plain[4]["images"][0]
    assert torch.equal(all_of_them[4]["images"][0], image), "images are not mirrored"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vision_tower": "tower"}, "Leave one out, or start from another model"),
        ({"image_tower": "video-tower"}, "is of model_type 'LanguageBindVideo', where a Video-LLaVA needs a Language"),
        ({"video_tower": "tower"}, "is of model_type 'clip_vision_model'"),
        ({"video_fps": 1.0}, "attends over 4 frames of a video, at equal distances"),
        ({"video_tower": None}, "records name videos .*but this model is trained on images and text alone"),
    ],
)
def test_what_does_not_go_together_is_refused(assets: Path, changes: dict[str, Any], said: str) -> None:
    places = {name: assets / value if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=said):
        prepared(assets, **places)


def test_a_llava_is_not_given_a_second_kind_of_tower(assets: Path, tmp_path: Path) -> None:
    train(flags(assets, tmp_path / "llava", "finetune", max_steps=1))
    with pytest.raises(ValueError, match=r"There is a vision_tower in .* and a video_tower on the command line"):
        train(video_flags(assets, tmp_path / "out", "finetune", model_name_or_path=tmp_path / "llava"))
    with pytest.raises(ValueError, match="--tokenizer_model_max_length is for a Video-LLaVA"):
        train(flags(assets, tmp_path / "out", "finetune", tokenizer_model_max_length=100))
    with pytest.raises(ValueError, match="--video_flip mirrors the videos of a Video-LLaVA"):
        train(flags(assets, tmp_path / "out", "finetune", video_flip=0.5))
