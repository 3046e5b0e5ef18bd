"""A tiny Video-LLaVA: two towers, one projector, random weights; on disk too, with made videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from PIL import Image
from tiny_text import llama

from llava.model import LlavaLlamaForCausalLM

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
