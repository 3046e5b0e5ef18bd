"""LLaVA-OneVision in LLaVA-NeXT's own layout (`lmms-lab/llava-onevision-*`): names, configuration and processor.

Such a folder holds neither a processor nor marks of images in its tokenizer. Both are made as in the published
conversion: `<image>` and `<video>` behind the other tokens, images and frames scaled to the tower's size with SigLIP's
mean and deviation. The chat template is LLaVA-NeXT's `qwen_1_5`, in which the models were trained: it begins with the
system's words where a conversation brings none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AddedToken, LlavaOnevisionConfig, PreTrainedTokenizerBase

from llava.checkpoints.settings_files import read_by_library
from llava.checkpoints.tokenizer import read_tokenizer
from llava.common.onevision_layout import onevision_config
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN

# For `key_mapping` of transformers' `from_pretrained`: patterns of LLaVA-NeXT's names, and what stands there here.
NAMES_HERE = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
}
CHAT_TEMPLATE = """\
{%- if not messages or messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}{{- message.content }}{%- else %}
        {%- for part in message.content if part.type == 'image' %}{{- '<image>\\n' }}{%- endfor %}
        {%- for part in message.content if part.type == 'video' %}{{- '<video>\\n' }}{%- endfor %}
        {%- for part in message.content if part.type == 'text' %}{{- part.text }}{%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_MEAN = _DEVIATION = (0.5, 0.5, 0.5)  # SigLIP's


def config_here(raw: Mapping[str, Any], folder: Path) -> LlavaOnevisionConfig:
    """Transformers' configuration of a model in LLaVA-NeXT's own layout.

    Args:
        raw: content of its `config.json`.
        folder: where it lies, with its tokenizer, which says the ids of the marks.

    Raises:
        ValueError: if transformers' class cannot say what the model is, or the tokenizer is missing or has more tokens
            than the model.
    """
    described = onevision_config(raw, folder)
    tokenizer = tokenizer_here(folder)
    described["image_token_index"], described["video_token_index"] = ids = tokenizer.convert_tokens_to_ids(
        [DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN]
    )
    with read_by_library(folder / "config.json"):
        config = LlavaOnevisionConfig.from_dict(described)
    rows = config.text_config.vocab_size
    if max(ids) >= rows:
        raise ValueError(
            f"{str(folder)!r} has embeddings of {rows} tokens (vocab_size), but the marks {DEFAULT_IMAGE_TOKEN} and "
            f"{DEFAULT_VIDEO_TOKEN} have the ids {ids[0]} and {ids[1]} behind those of its tokenizer. Qwen2's "
            "embeddings have more rows than tokens: give the model as it was trained, before they were cut off."
        )
    return config


def tokenizer_here(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder in this layout, with the marks of images and videos behind its other tokens.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    tokenizer = read_tokenizer(folder)
    known = tokenizer.get_vocab()
    for mark in (DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN):
        if mark not in known:
            tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False)], special_tokens=True)
    return tokenizer


def processor_settings(config: LlavaOnevisionConfig) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings of the image processor, the processor of videos, and the whole."""
    vision = config.vision_config
    pixels = {
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": int(Image.Resampling.BICUBIC),
        "rescale_factor": 1 / 255,
        "image_mean": list(_MEAN),
        "image_std": list(_DEVIATION),
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    }
    whole = {
        "num_image_tokens": (vision.image_size // vision.patch_size) ** 2,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "vision_aspect_ratio": config.vision_aspect_ratio,
        "image_token": DEFAULT_IMAGE_TOKEN,
        "video_token": DEFAULT_VIDEO_TOKEN,
    }
    return pixels | {"image_grid_pinpoints": config.image_grid_pinpoints, "do_pad": True}, pixels, whole
