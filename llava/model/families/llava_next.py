"""LLaVA-NeXT (LLaVA-1.6) as transformers has it: an image is cut into crops, and a small one shows all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from llava.compression.config import CompressionConfig
from llava.model.families.clip import ClipFamily
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedLlavaNext(ClipFamily, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` with both stages inside.

    V2V shortens every crop to the same number of tokens (paper Table 13: 850 + 175 over five crops). The rows of the
    whole image end there, and with them the newline embeddings between rows and the cutting away of padding.
    """

    stock = LlavaNextForConditionalGeneration
    visual_inputs = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    forward = forward_like(LlavaNextForConditionalGeneration)

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, its crops behind one another."""
        pixels, sizes = inputs["pixel_values"], inputs["image_sizes"]
        if pixels is None or not len(pixels):
            return {self.config.image_token_id: []}
        if sizes is None:
            raise ValueError("pixel_values came without image_sizes; give all that the model's own processor returns.")
        if compression.v2v is None:
            given = {name: value for name, value in inputs.items() if value is not None}
            features = self.model.get_image_features(**given, return_dict=True).pooler_output
            return {self.config.image_token_id: [VisualSpan(image, len(image)) for image in features]}
        counts = [self._crops(size) for size in sizes]
        if pixels.dim() == 5:  # images with fewer crops are padded
            pixels = torch.cat([image[:count] for image, count in zip(pixels, counts, strict=True)])
        merged = self.merged(self.model.vision_tower, pixels, inputs, compression.v2v)
        images = [image.flatten(0, 1) for image in merged.split(counts)]
        replaced = self._placeholders(sizes, counts)
        spans = [VisualSpan(image, count) for image, count in zip(images, replaced, strict=True)]
        return {self.config.image_token_id: spans}

    def _crops(self, size: Tensor) -> int:
        config = self.config
        return image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)

    def _placeholders(self, sizes: Tensor, counts: list[int]) -> list[int]:
        """Tokens of each image without V2V: the stock packing decides, on features of width 1."""
        vision = self.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        blank = [torch.zeros(count, patches, 1) for count in counts]
        strategy = self.config.vision_feature_select_strategy
        _, lengths = self.model.pack_image_features(blank, sizes, strategy, image_newline=torch.zeros(1))
        return lengths.tolist()
