"""LLaVA-OneVision in LLaVA-NeXT's own layout (`lmms-lab/llava-onevision-*`): names, configuration and processor.

Such a folder holds neither a processor nor marks of images in its tokenizer. Both are made as in the published
conversion: `<image>` and `<video>` behind the other tokens, images and frames scaled to the tower's size with SigLIP's
mean and deviation. The chat template is LLaVA-NeXT's `qwen_1_5`, in which the models were trained: it begins with the
system's words where a conversation brings none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from PIL import Image
from transformers import LlavaOnevisionConfig, PreTrainedTokenizerBase

from llava.checkpoints.settings_files import read_by_library
from llava.checkpoints.tokenizer import add_marks, read_tokenizer
from llava.common.json_files import write_json
from llava.common.onevision_layout import TOWER_FOLDER, layout_config, onevision_config
from llava.common.shown import shown
from llava.constants import DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN

# For `key_mapping` of transformers' `from_pretrained`: patterns of LLaVA-NeXT's names, and what stands there here.
NAMES_HERE = {
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "model.vision_tower.",
    r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
}
# The other way, of a model's own names.
_NAMES_THERE = {
    r"^model\.language_model\.": "model.",
    r"^model\.vision_tower\.(?:vision_model\.)?": "model.vision_tower.vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.linear_1\.": "model.mm_projector.0.",
    r"^model\.multi_modal_projector\.linear_2\.": "model.mm_projector.2.",
    r"^model\.image_newline$": "model.image_newline",
    r"^lm_head\.": "lm_head.",
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


def write_layout(model: Any, processor: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, source: str) -> None:
    """Write a LLaVA-OneVision of transformers in LLaVA-NeXT's own layout.

    Args:
        model: `LlavaOnevisionForConditionalGeneration`, or the compressed one.
        processor: its processor, or the parts of it.
        tokenizer: its tokenizer.
        folder: folder to write to.
        source: where the model comes from, for messages.

    Raises:
        ValueError: if the model has what that layout does not say, or its pixels are made otherwise; names it.
    """
    images = processor.image_processor.to_dict()
    for field, value in processor_settings(model.config)[0].items():
        held = images.get(field)
        if not _alike(held, value):
            raise ValueError(
                f"{field} of the image processor of {source!r} is {shown(held)}; LLaVA-NeXT's own layout has no "
                f"processor, and its program takes {shown(value)}."
            )
    config, tower = layout_config(model.config.to_dict(), source)
    config["torch_dtype"] = str(model.dtype).removeprefix("torch.")
    config.pop("dtype", None)
    tied = model.all_tied_weights_keys
    state = {name_there(name): weight for name, weight in model.state_dict().items() if name not in tied}
    save_torch_state_dict(state, folder)
    write_json(folder / "config.json", config, indent=2)
    if tower is not None:
        (folder / TOWER_FOLDER).mkdir()
        write_json(folder / TOWER_FOLDER / "config.json", tower, indent=2)
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(other, float):
        return isinstance(one, int | float) and math.isclose(one, other, rel_tol=1e-6)
    if isinstance(other, dict):
        return all(one.get(key) == value for key, value in other.items()) if hasattr(one, "get") else False
    if isinstance(other, list):
        return [list(x) if isinstance(x, tuple) else x for x in one or ()] == other
    return bool(one == other)


def name_there(name: str) -> str:
    """What LLaVA-NeXT's program calls a weight of a LLaVA-OneVision."""
    for pattern, replacement in _NAMES_THERE.items():
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    raise ValueError(f"A LLaVA-OneVision has no weight {name!r}; it cannot be written in LLaVA-NeXT's own layout.")


def tokenizer_here(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder in this layout, with the marks of images and videos behind its other tokens.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    tokenizer = read_tokenizer(folder)
    add_marks(tokenizer, DEFAULT_IMAGE_TOKEN, DEFAULT_VIDEO_TOKEN)
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
