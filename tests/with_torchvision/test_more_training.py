"""Training Qwen3-VL and LLaVA-OneVision on videos and images, and asking them about a video."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distributed import losses, weights
from PIL import Image
from test_qwen_training import turns, write_video
from tiny_onevision import write_onevision
from tiny_qwen3 import write_qwen3
from transformers import AutoModelForImageTextToText

from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.train.train import train

WRITERS = {"qwen3_vl": write_qwen3, "llava_onevision": write_onevision}
BUDGET = {"v2v": {"dominant": 0.4, "contextual": 0.2, "cluster_width": 2}, "t2v": {"layers": [2], "keep": [0.5]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((24, 31, 5)):
        write_video(folder / f"{number}.mp4", frames, number)
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    records = [
        {"id": "v", "video": "0.mp4", "conversations": turns("<video>\nWhere is the seven?", "top left")},
        {"id": "w", "video": ["1.mp4", "2.mp4"], "conversations": turns("Is<video>or<video>blue?", "no")},
        {"id": "b", "image": "red.png", "video": "2.mp4", "conversations": turns("<image><video>Which?", "seven")},
        {"id": "i", "image": ["red.png", "blue.png"], "conversations": turns("<image><image>\nWhich?", "two")},
        {"id": "t", "conversations": turns("What digit is red?", "red three")},
    ]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "budget.yaml").write_text(json.dumps(BUDGET))
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_videos_are_trained_on_and_asked_about(place: Path, name: str) -> None:
    start = WRITERS[name](place / name)
    options = {
        "model_name_or_path": start,
        "image_folder": place,
        "video_folder": place,
        "data_path": place / "data.json",
        "output_dir": place / f"{name}-out",
        "compression": place / "budget.yaml",
        "use_cpu": True,
        "bf16": False,
        "model_max_length": 1024,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "frames_upbound": 6,
    }
    folder = train([word for key, value in options.items() for word in (f"--{key}", str(value))])
    assert all(torch.isfinite(torch.tensor(losses(folder)))) and len(losses(folder)) == 5
    before, after = weights(start), weights(folder)
    tower = "visual." if name == "qwen3_vl" else "vision_tower."
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert still and all(tower in key and "merger" not in key for key in still)
    engine = Engine.open(ModelSpec(str(folder), num_frames=6), "cpu")
    assert engine.model.compression.t2v is not None
    settings = GenerationSettings(0, max_new_tokens=4)
    prompts = [Prompt("Where?", video=place / "0.mp4"), Prompt("Which?", (place / "red.png",)), Prompt("Hello")]
    together = engine.answer(prompts, settings)
    assert together == [engine.answer([prompt], settings)[0] for prompt in prompts]
    assert AutoModelForImageTextToText.from_pretrained(folder).config.model_type == name
