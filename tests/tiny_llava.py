"""A LLaVA small enough to train in seconds: folders of a tower, a language model, and a few questions."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from tiny_text import llama
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
COMPRESSION = "v2v: {dominant: 7, contextual: 2, cluster_width: 2}\nt2v: {layers: [2, 3], keep: [0.5, 0.0]}\n"


def write_assets(folder: Path) -> Path:
    """Fill a folder with `tower/`, `lm/`, `images/`, `captions.json`, `chats.json` and `tiny.yaml`."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    CLIPVisionModel(tower).save_pretrained(folder / "tower")
    size = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size).save_pretrained(folder / "tower")
    tokenizer = llama()
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(language).save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "lm")
    (folder / "images").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 14), colour).save(folder / "images" / f"{name}.png")
    (folder / "captions.json").write_text(json.dumps([_caption(i, name) for i, name in enumerate(COLOURS)] * 4))
    chats = [_chat(i, name) for i, name in enumerate(COLOURS)] * 3 + [_text(i) for i in range(4)]
    (folder / "chats.json").write_text(json.dumps(chats))
    (folder / "tiny.yaml").write_text(COMPRESSION)
    return folder


def flags(assets: Path, output: Path, phase: str, **changes: object) -> list[str]:
    """Command line of a phase, `pretrain` or `finetune`, on the CPU; `changes` override or add flags.

    The trial save before the first step takes half of so small a training: tests that are about it ask for it.
    """
    options: dict[str, object] = {
        "model_name_or_path": assets / "lm",
        "vision_tower": assets / "tower",
        "mm_projector_type": "mlp2x_gelu",
        "image_folder": assets / "images",
        "data_path": assets / "chats.json",
        "version": "v1",
        "compression": assets / "tiny.yaml",
        "image_aspect_ratio": "pad",
        "output_dir": output,
        "use_cpu": True,
        "bf16": False,
        "model_max_length": 256,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "early_save_check": False,
        "disable_tqdm": True,
        "seed": 7,
    }
    if phase == "pretrain":
        options |= {"data_path": assets / "captions.json", "version": "plain", "tune_mm_mlp_adapter": True}
    options |= changes
    return [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def _caption(index: int, name: str) -> dict[str, object]:
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": f"a {name} picture"}]
    return {"id": f"caption-{index}", "image": f"{name}.png", "conversations": turns}


def _chat(index: int, name: str) -> dict[str, object]:
    turns = [
        {"from": "human", "value": "<image>\nWhich colour is it?"},
        {"from": "gpt", "value": name},
        {"from": "human", "value": "Is there a digit?"},
        {"from": "gpt", "value": "no"},
    ]
    return {"id": f"chat-{index}", "image": f"{name}.png", "conversations": turns}


def _text(index: int) -> dict[str, object]:
    turns = [{"from": "human", "value": "What is blue?"}, {"from": "gpt", "value": "a colour"}]
    return {"id": f"text-{index}", "conversations": turns}
