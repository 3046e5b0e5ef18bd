"""A tiny LLaVA on disk, with tokenizer and image processor, as `load_pretrained_model` opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from PIL import Image
from tiny_text import llama


def write_model(folder: Path, **settings: Any) -> Path:
    """Fill a folder with a random model in float32; `settings` as in `tiny_llava`."""
    tokenizer = llama()
    options: dict[str, Any] = {"vocab_size": len(tokenizer), "compression": tiny.DUET, "eos_token_id": 2} | settings
    tiny.tiny_llava(dtype=torch.float32, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_pictures(folder: Path, count: int) -> list[str]:
    """Files of coloured noise."""
    draw = torch.Generator().manual_seed(3)
    names = []
    for number in range(count):
        noise = torch.randint(0, 255, (56, 56, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).save(folder / f"{number}.png")
        names.append(str(folder / f"{number}.png"))
    return names
