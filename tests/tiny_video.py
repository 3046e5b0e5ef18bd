"""A tiny Video-LLaVA: two towers, one projector, random weights; on disk too, with made videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_llava import flags, write_assets
from tiny_text import llama

from llava.model import LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.languagebind_towers import LanguageBindImageTower, LanguageBindVideoTower

FRAMES = 4
SIDE = 28
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 7,
    "hidden_act": "gelu",
    "lora_r": 0,
}


def video_llava(timed: bool = True, frames: int = FRAMES, **settings: Any) -> LlavaLlamaForCausalLM:
    """A Video-LLaVA in eval mode; `settings` as in `tiny_llava`."""
    own = {
        "mm_vision_tower": None,
        "mm_vision_config": None,
        "mm_image_tower": "tiny-image-tower",
        "mm_image_config": TOWER,
        "mm_video_tower": "tiny-video-tower",
        "mm_video_config": {**TOWER, "add_time_attn": timed, "num_frames": frames},
        "image_aspect_ratio": "pad",
    }
    model = tiny.tiny_llava(**{**own, **settings})
    for _, tower in model.named_towers():
        tower.is_loaded = True
    return model


def write_video_llava(folder: Path, **settings: Any) -> Path:
    """Fill a folder with a random model in float32 and a tokenizer."""
    tokenizer = llama()
    options: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 2, "dtype": torch.float32} | settings
    video_llava(**options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pictures(count: int, width: int = 40, height: int = 32, seed: int = 0) -> list[Image.Image]:
    """Coloured noise."""
    draw = np.random.default_rng(seed)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)) for _ in range(count)]


def write_video(folder: Path, count: int = 5, seed: int = 0) -> Path:
    """A video as a folder of frames."""
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures(count, seed=seed)):
        picture.save(folder / f"{number}.png")
    return folder


def pixels(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Noise [3, *shape]."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def write_towers(folder: Path, frames: int = FRAMES) -> None:
    """LanguageBind's two models as they lie on the hub, under `image-tower` and `video-tower`."""
    for kind, whole in (("image", "LanguageBindImage"), ("video", "LanguageBindVideo")):
        own = {**TOWER, "num_frames": frames if kind == "video" else 1, "add_time_attn": kind == "video"}
        make = LanguageBindVideoTower if kind == "video" else LanguageBindImageTower
        tower = make("tower", -2, config=own)
        tiny.randomise(tower, seed=len(whole))
        weights = {f"vision_model.{name}": weight for name, weight in tower.model.state_dict().items()}
        weights["text_model.embeddings.token_embedding.weight"] = torch.zeros(4, 4)
        place = folder / f"{kind}-tower"
        place.mkdir()
        save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
        config = {"model_type": whole, "vision_config": {**own, "model_type": "clip_vision_model"}}
        (place / "config.json").write_text(json.dumps(config))


def write_training(folder: Path) -> Path:
    """Towers, a language model, pictures, videos, and conversations about one, the other, both and neither."""
    folder.mkdir(parents=True, exist_ok=True)
    write_assets(folder)
    write_towers(folder)
    for number in range(3):
        write_video(folder / "videos" / f"clip{number}", 5 + number, seed=number)
    answer = {"from": "gpt", "value": "a red three"}
    records: list[dict[str, Any]] = []
    for number in range(3):
        ask = [{"from": "human", "value": "<video>\nWhat happens?"}, answer]
        records.append({"id": f"video-{number}", "video": f"clip{number}", "conversations": ask})
    both = [{"from": "human", "value": "<video><image>\nWhat is the same?"}, answer]
    records.append({"id": "both", "video": "clip0", "image": "red.png", "conversations": both})
    picture = [{"from": "human", "value": "Which colour?\n<image>"}, answer]
    records.append({"id": "picture", "image": "blue.png", "conversations": picture})
    records.append({"id": "text", "conversations": [{"from": "human", "value": "What is blue?"}, answer]})
    (folder / "mixed.json").write_text(json.dumps(records))
    return folder


def video_flags(folder: Path, output: Path, phase: str, **changes: object) -> list[str]:
    """Command line of a phase of Video-LLaVA; as in `tiny_llava.flags`."""
    own: dict[str, object] = {
        "vision_tower": None,
        "image_tower": folder / "image-tower",
        "video_tower": folder / "video-tower",
        "video_folder": folder / "videos",
        "data_path": folder / "mixed.json",
        "version": "v1",
        "per_device_train_batch_size": 3,
        "max_steps": 2,
    }
    return flags(folder, output, phase, **{**own, **changes})
