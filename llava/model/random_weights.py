"""A LLaVA with random weights and batches of random tokens: they cost what a trained model and a real batch cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPVisionConfig

from llava.common.anyres import default_pinpoints
from llava.common.known_towers import CLIP_LARGE_336
from llava.common.onevision_layout import onevision_config
from llava.common.presets import family_of, is_onevision_layout
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.cost.seen_media import Medium, seen_by, usual_medium
from llava.cost.shapes import MODELS, DecoderShape
from llava.model.compressed_model import compress
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.llava_config import LlavaConfig

TINY = "tiny"
_OF_LLAVA = (None, "llava", "llava_llama", "llava_mistral", "llama", "mistral")
_LANGUAGE_BIND = {**CLIP_LARGE_336, "image_size": 224, "hidden_act": "gelu", "add_time_attn": False, "lora_r": 0}
_TINY_TOWER = {**CLIP_LARGE_336, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
_7B = MODELS["llava-1.5-7b"]
SHAPES = {
    **{name: (shape, CLIP_LARGE_336) for name, shape in MODELS.items()},
    "llava-next-7b": (_7B, CLIP_LARGE_336),
    "video-llava-7b": (_7B, _LANGUAGE_BIND),
    "medium": (
        DecoderShape(16, 512, 8, 8, 64, 1376, 2048),
        {**CLIP_LARGE_336, "hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4},
    ),
    TINY: (DecoderShape(32, 64, 4, 4, 16, 172, 512), _TINY_TOWER),
    "tiny-168": (DecoderShape(32, 64, 4, 4, 16, 172, 512), {**_TINY_TOWER, "image_size": 168, "num_hidden_layers": 4}),
}
"""Dimensions of language models and towers' configurations. `tiny` has LLaVA-1.5-7B's layers and visual tokens;
`tiny-168` a quarter of the tokens, from images of 168 pixels, and a shallow tower; `medium` as many visual tokens as
LLaVA-1.5-7B, too, and products large enough that a CPU spends its time in them."""
_FIELDS: dict[str, dict[str, Any]] = {
    "llava-next-7b": {
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": default_pinpoints(336),
    },
    "video-llava-7b": {
        "mm_vision_tower": None,
        "mm_vision_config": None,
        "mm_image_tower": "random weights",
        "mm_image_config": _LANGUAGE_BIND,
        "mm_video_tower": "random weights",
        "mm_video_config": {**_LANGUAGE_BIND, "add_time_attn": True, "num_frames": 8},
        "image_aspect_ratio": "pad",
    },
}
"""What configurations of other families than LLaVA-1.5's have beside or instead of its fields."""


def random_model(name: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A model of a named shape, or of the shape that a folder's config.json describes, made on the device.

    Raises:
        ValueError: if it is neither.
    """
    config = random_config(name)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            if isinstance(config, LlavaConfig):
                return LlavaLlamaForCausalLM(config).eval()
            return compress(AutoModelForImageTextToText.from_config(config).eval(), "none")
    finally:
        torch.set_default_dtype(previous)


def random_config(name: str) -> Any:
    """The configuration of `random_model`.

    Raises:
        ValueError: as there.
    """
    if name in SHAPES:
        return _config_of(*SHAPES[name], **_FIELDS.get(name, {}))
    if not (Path(name) / "config.json").is_file():
        raise ValueError(f"There is no shape {name!r}; give {', '.join(SHAPES)}, or a folder with a config.json.")
    content, _ = LlavaConfig.get_config_dict(name)
    if is_onevision_layout(content):
        return AutoConfig.for_model(**onevision_config(content, Path(name)))
    if "vision_config" in content:
        return AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=True)
    if content.get("model_type") not in _OF_LLAVA:
        raise ValueError(f"{name!r} holds a {content.get('model_type')}, which is no model that is shown images.")
    config = LlavaConfig.from_pretrained(name)
    config._attn_implementation = None  # the file could name a kernel, which transformers fetches from the hub
    if config.mm_vision_config is None and not config.sees_videos:
        config.mm_vision_config = CLIPVisionConfig(**CLIP_LARGE_336).to_dict()
    return config


def _config_of(shape: DecoderShape, tower: dict[str, Any], **fields: Any) -> LlavaConfig:
    vision = CLIPVisionConfig(**tower)
    of_llava = {
        "mm_vision_tower": "random weights",
        "mm_vision_config": vision.to_dict(),
        "mm_hidden_size": vision.hidden_size,
        "mm_projector_type": "mlp2x_gelu",
    }
    return LlavaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=4096,
        **of_llava | fields,
    )


def random_batch(
    model: Any,
    rows: int,
    text_tokens: int,
    images: int = 1,
    labels: bool = False,
    medium: Medium | None = None,
) -> dict[str, Any]:
    """Rows of equal shape, so that nothing is padded; the same numbers every time.

    Args:
        model: a model in LLaVA's own format.
        rows: number of rows.
        text_tokens: number of text tokens of a row, beside its images.
        images: number of images (or videos) of a row, which stand where LLaVA-1.5's system prompt ends.
        labels: whether the last fifth of the text of a row is its answer.
        medium: size of images before they are prepared, and frames of a video; None for the usual ones.

    Returns:
        `input_ids` [rows, text_tokens + placeholders], with images `images`: [rows * images, 3, S, S], of a LLaVA-NeXT
        a list of their crops [K, 3, S, S] beside `image_sizes`, of a Video-LLaVA a list of images [3, S, S] or videos
        [3, T, S, S]; and `labels` if asked.
    """
    noise, config = torch.Generator().manual_seed(0), model.config.to_dict()
    medium = medium or usual_medium(config)
    family, frames = family_of(config), medium.frames or 1
    marks = images * frames
    ids = torch.randint(3, model.config.vocab_size, (rows, text_tokens + marks), generator=noise)
    first = min(35, text_tokens // 2)
    ids[:, first : first + marks] = IMAGE_TOKEN_INDEX
    batch: dict[str, Any] = {"input_ids": ids.to(model.device)}
    if images:
        size = model.get_vision_tower().config.image_size

        def pixels(*shape: int) -> Tensor:
            return torch.randn(*shape, size, size, generator=noise).to(model.device, model.dtype)

        if family == "llava-next" and not medium.frames:
            crops = seen_by(config, medium).units
            batch["images"] = [pixels(crops, 3) for _ in range(rows * images)]
            batch["image_sizes"] = [(medium.width, medium.height)] * (rows * images)
        elif family == "video-llava":
            shape = (3, medium.frames) if medium.frames else (3,)
            batch["images"] = [pixels(*shape) for _ in range(rows * images)]
        else:
            batch["images"] = pixels(rows * marks, 3)
    if labels:
        targets = ids.clone()
        targets[:, : -max(1, text_tokens // 5)] = IGNORE_INDEX
        batch["labels"] = targets.to(model.device)
    return batch
