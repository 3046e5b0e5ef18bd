"""A LLaVA-NeXT small enough to recompute by hand, and the same weights in transformers' class, with its processor."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tiny import VOCABULARY, tiny_llava
from tiny_vlms import renamed
from torch import Tensor
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from llava.common.anyres import default_pinpoints
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import image_sizes, process_images

SIDE, PATCH, IMAGE = 56, 14, VOCABULARY - 1
_SIZES = (
    "1x1 1x2 2x1 56x56 57x56 56x57 112x112 100x33 33x100 120x61 61x120 300x260 192x108 108x192 50x37 7x300 300x7 "
    "171x64 37x1999 1999x37"
)
SIZES = [tuple(map(int, size.split("x"))) for size in _SIZES.split()]
"""(width, height) of twenty images."""


def next_llava(**config: Any) -> Any:
    """LLaVA's own model with the fields of LLaVA-NeXT, in float64; the last row of its vocabulary is never answered."""
    settings = {
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": default_pinpoints(SIDE),
        "image_opening": "llava",
    }
    model = tiny_llava(**settings | config)
    model.generation_config.pad_token_id = 0
    return model


def stock_of(model: Any) -> LlavaNextForConditionalGeneration:
    """transformers' LLaVA-NeXT with the weights of ours: a second program from pixels to logits."""
    text = {name: value for name, value in model.config.to_dict().items() if name in LlamaConfig().to_dict()}
    config = LlavaNextConfig(
        vision_config=model.get_vision_tower().config.to_dict(),
        text_config=text | {"model_type": "llama"},
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[height, width] for width, height in model.config.image_grid_pinpoints],
    )
    stock = LlavaNextForConditionalGeneration(config).to(model.dtype).eval()
    stock.load_state_dict({renamed(name): value for name, value in model.state_dict().items()})
    stock.generation_config.pad_token_id, stock.generation_config.eos_token_id = 0, None
    return stock


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of coloured noise, coarse enough to survive scaling."""
    noise = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.BILINEAR)


def pixels_of(model: Any, pictures: list[Image.Image]) -> dict[str, Any]:
    """Pictures as arguments of our model."""
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = process_images(pictures, processor, model.config)
    return {
        "images": [image.to(model.dtype) for image in pixels],
        "image_sizes": image_sizes(pictures, model.config),
    }


def spelled_out(stock: Any, ids: Tensor, pictures: list[Image.Image]) -> dict[str, Any]:
    """A prompt of one row as transformers' model takes it, with pixels of its own processor."""
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=stock.config.image_grid_pinpoints,
    )
    made = processor(pictures, return_tensors="pt")
    with torch.no_grad():
        features = stock.model.get_image_features(
            made["pixel_values"].to(stock.dtype),
            made["image_sizes"],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            return_dict=True,
        ).pooler_output
    lengths = iter([len(image) for image in features])
    spelled: list[int] = []
    for token in ids[0].tolist():
        spelled += [IMAGE] * next(lengths) if token == IMAGE_TOKEN_INDEX else [token]
    return {
        "input_ids": torch.tensor([spelled]),
        "pixel_values": made["pixel_values"].to(stock.dtype),
        "image_sizes": made["image_sizes"],
    }
