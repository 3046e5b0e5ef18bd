"""A tiny LLaVA-OneVision as its publisher lays it out: random weights, Qwen's tokenizer class, processors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import randomise
from tiny_qwen import qwen_tokenizer
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerBase,
    Qwen2Config,
    SiglipVisionConfig,
)

SPACED = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ' ' }}
    {%- for part in message.content if part.type == 'image' %}{{- '<image>' }}{%- endfor %}
    {%- for part in message.content if part.type == 'video' %}{{- '<video>' }}{%- endfor %}
    {%- for part in message.content if part.type == 'text' %}{{- '\\n' + part.text }}{%- endfor %}
    {{- '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""What one of the published templates writes, written anew: a blank, the images, and a line break before the text."""
LINES = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- for part in message.content if part.type == 'image' %}{{- '<image>\\n' }}{%- endfor %}
    {%- for part in message.content if part.type == 'video' %}{{- '<video>\\n' }}{%- endfor %}
    {%- for part in message.content if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""What the other one writes: lines, each image on one of its own."""
SIDE, PATCH = 56, 8
PINPOINTS = [[56, 56], [56, 112], [112, 56], [112, 112]]
ALLOWED = "anyres_max_2"


def onevision_tokenizer() -> PreTrainedTokenizerBase:
    """Qwen's tokenizer class, with the placeholders of LLaVA-OneVision."""
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    return tokenizer


def onevision_config(tokenizer: PreTrainedTokenizerBase, layers: int = 4) -> LlavaOnevisionConfig:
    """Of a model that this tokenizer goes with: crops of 7 x 7 tokens, at most twice as many for all of them."""
    names = ["<image>", "<video>", "<|im_end|>", "<|endoftext|>"]
    image, video, end, pad = tokenizer.convert_tokens_to_ids(names)
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=pad,
        bos_token_id=pad,
        eos_token_id=end,
    )
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=ALLOWED,
    )


def write_onevision(
    folder: Path, layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0, template: str = SPACED
) -> Path:
    """A folder with weights, tokenizer, template and the files of both processors."""
    tokenizer = onevision_tokenizer()
    model = LlavaOnevisionForConditionalGeneration(onevision_config(tokenizer, layers))
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    common: dict[str, Any] = {"size": size, "processor_class": "LlavaOnevisionProcessor"}
    image = common | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": PINPOINTS}
    video = common | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    whole = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": ALLOWED,
    }
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder
