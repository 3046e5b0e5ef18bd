"""A tiny Qwen3-VL as its publisher lays it out: random weights, Qwen's tokenizer class, its processors' files.

Dense, or a mixture of experts, whose weights are published transposed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny import randomise
from tiny_qwen import SPECIAL, TEMPLATE, qwen_tokenizer
from transformers import (
    PreTrainedTokenizerBase,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

PIXELS = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


def qwen3_config(tokenizer: PreTrainedTokenizerBase, layers: int = 4, **text: int) -> Any:
    """Of a model that this tokenizer goes with; DeepStack behind its first two decoder layers."""
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    return (Qwen3VLMoeConfig if "num_experts" in text else Qwen3VLConfig)(
        text_config={
            **text,
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 1024,
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def write_qwen3_moe(folder: Path, layers: int = 4) -> Path:
    """As `write_qwen3`, of a mixture of experts."""
    return write_qwen3(folder, layers, **EXPERTS)


def transpose_experts(folder: Path) -> None:
    """Exchange inputs and outputs of the experts in a folder's weights."""
    path = folder / "model.safetensors"
    held = load_file(path)
    turned = {name: held[name].transpose(1, 2).contiguous() for name in held if ".experts." in name}
    save_file(held | turned, path, {"format": "pt"})


def write_qwen3(folder: Path, layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0, **text: int) -> Path:
    """A folder with weights, tokenizer, template and the files of both processors."""
    tokenizer = qwen_tokenizer()
    model_class = Qwen3VLMoeForConditionalGeneration if text else Qwen3VLForConditionalGeneration
    model = model_class(qwen3_config(tokenizer, layers, **text))
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    if text:
        transpose_experts(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    common: dict[str, Any] = {**PIXELS, "processor_class": "Qwen3VLProcessor"}
    image = common | {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 256, "longest_edge": 2048},
    }
    video = common | {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": 512, "longest_edge": 8192},
        "max_frames": 8,
        "cap_pixels_per_frame": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder
