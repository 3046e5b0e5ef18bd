"""A tiny Qwen2.5-VL as its publisher lays it out: random weights, Qwen's own tokenizer class, its processors' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tiny import randomise
from tiny_text import CORPUS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

NAMES = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
SPECIAL = [f"<|{name}|>" for name in NAMES]
TEMPLATE = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type in ('image', 'video') %}
                {{- '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}
            {%- else %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""What Qwen2.5-VL's own template writes, written anew."""
PIXELS = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 256, "max_pixels": 2048}


def qwen_tokenizer() -> PreTrainedTokenizerBase:
    """Qwen's tokenizer class with a vocabulary of a few hundred pieces."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def qwen_config(tokenizer: PreTrainedTokenizerBase, layers: int = 4) -> Qwen2_5_VLConfig:
    """Of a model that this tokenizer goes with."""
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "pad_token_id": ids["<|endoftext|>"],
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
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
            "window_size": 16,
            "fullatt_block_indexes": [0, 2],
            "tokens_per_second": 4,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )


def write_qwen(folder: Path, layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A folder with weights, tokenizer, template and the files of both processors."""
    tokenizer = qwen_tokenizer()
    model = Qwen2_5_VLForConditionalGeneration(qwen_config(tokenizer, layers))
    randomise(model, seed)
    model.to(dtype).save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    write_processors(folder)
    return folder


def write_processors(folder: Path) -> None:
    """`preprocessor_config.json` and `video_preprocessor_config.json`, small pixels for small patches."""
    common: dict[str, Any] = {**PIXELS, "processor_class": "Qwen2_5_VLProcessor"}
    image = common | {"image_processor_type": "Qwen2VLImageProcessor"}
    video = common | {"video_processor_type": "Qwen2VLVideoProcessor", "max_frames": 8, "cap_pixels_per_frame": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
