"""Training Qwen2.5-VL on videos, and asking it about one: records, frames by the second, processors, saved limits."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from distributed import losses, weights
from PIL import Image
from tiny_qwen import write_qwen
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava.inference.batches import Prompt
from llava.inference.engine import Engine, ModelSpec
from llava.inference.generation import GenerationSettings
from llava.train.train import train


def write_video(path: Path, frames: int, seed: int) -> None:
    """Noise of 48 x 32 pixels, ten frames a second."""
    draw = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(frames):
            picture = draw.integers(0, 255, (32, 48, 3), dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    write_qwen(folder / "qwen")
    for number, frames in enumerate((24, 31, 5)):
        write_video(folder / f"{number}.mp4", frames, number)
    Image.new("RGB", (40, 30), (200, 0, 0)).save(folder / "red.png")
    records = [
        {"id": "v", "video": "0.mp4", "conversations": turns("<video>\nWhere is the seven?", "top left")},
        {"id": "w", "video": ["1.mp4", "2.mp4"], "conversations": turns("Is<video>or<video>blue?", "no")},
        {"id": "b", "image": "red.png", "video": "2.mp4", "conversations": turns("<video><image>Which?", "seven")},
        {"id": "t", "conversations": turns("What digit is red?", "red three")},
    ]
    (folder / "data.json").write_text(json.dumps(records))
    budget = {"v2v": {"dominant": 0.4, "contextual": 0.2, "cluster_width": 2}, "t2v": {"layers": [2], "keep": [0.5]}}
    (folder / "budget.yaml").write_text(json.dumps(budget))
    return folder


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_videos_are_trained_on_and_asked_about(place: Path) -> None:
    options = {
        "model_name_or_path": place / "qwen",
        "image_folder": place,
        "data_path": place / "data.json",
        "output_dir": place / "out",
        "compression": place / "budget.yaml",
        "use_cpu": True,
        "bf16": False,
        "model_max_length": 512,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "video_fps": 3,
        "video_max_frames": 6,
        "video_min_pixels": 64,
        "video_max_pixels": 512,
    }
    folder = train([word for key, value in options.items() for word in (f"--{key}", str(value))])
    seen = losses(folder)
    assert len(seen) == 4 and seen[-1] < seen[0] and weights(folder)
    processor = AutoProcessor.from_pretrained(folder).video_processor
    assert (processor.fps, processor.max_frames) == (3, 6)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (64, 512)
    assert AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).config.model_type == "qwen2_5_vl"

    engine = Engine.open(ModelSpec(str(folder)), "cpu")
    prompts = [
        Prompt("Where is the seven?", video=place / "0.mp4"),
        Prompt("What digit is red?"),
        Prompt("Which?", (Image.new("RGB", (40, 30)),)),
    ]
    samples = [engine.sample(prompt) for prompt in prompts]
    (shown,) = samples[0]["images"]
    assert shown.inputs["video_grid_thw"].tolist() == [[3, 4, 6]], "24 frames at 10 a second, 3 a second: 6, by twos"
    assert shown.inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / (6 / 24 * 10)])
    settings = GenerationSettings(max_new_tokens=5)
    assert engine.answer(prompts, settings) == [engine.answer([prompt], settings)[0] for prompt in prompts]


def test_a_video_that_cannot_be_read_follows_the_rule_for_bad_samples(place: Path) -> None:
    (place / "bad.mp4").write_bytes(b"no video")
    record = {"id": "x", "video": "bad.mp4", "conversations": turns("<video>Where?", "top left")}
    (place / "bad.json").write_text(json.dumps([record, json.loads((place / "data.json").read_text())[3]]))
    words = [
        *(
            "--model_name_or_path",
            str(place / "qwen"),
            "--image_folder",
            str(place),
            "--output_dir",
            str(place / "bad"),
        ),
        *("--data_path", str(place / "bad.json"), "--use_cpu", "True", "--bf16", "False", "--max_steps", "1"),
        *("--per_device_train_batch_size", "2", "--save_strategy", "no", "--disable_tqdm", "True"),
        *("--max_bad_share", "0.9", "--logging_steps", "1"),
    ]
    with pytest.raises(ValueError, match=r"record 'x': .*bad\.mp4"):
        train([*words, "--on_bad_sample", "fail"])
    folder = train([*words, "--on_bad_sample", "skip"])
    assert len(losses(folder)) == 1
