"""LLaVA-NeXT (LLaVA-1.6) as transformers has it: an image is cut into crops, and a small one shows all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from llava.compression.config import CompressionConfig, V2VConfig
from llava.model.crops import raster_order
from llava.model.families.clip import ClipFamily
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedLlavaNext(ClipFamily, LlavaNextForConditionalGeneration):
    """`LlavaNextForConditionalGeneration` with both stages inside.

    V2V shortens every crop to the same number of tokens (paper Table 13: 850 + 175 over five crops). The rows of the
    whole image end there, and with them the newline embeddings between rows and the cutting away of padding; the
    tokens stand where `v2v.crop_order` says.
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
            return {self.config.image_token_id: self.stock_spans(inputs)}
        counts = [self._crops(size) for size in sizes]
        if pixels.dim() == 5:  # images with fewer crops are padded
            pixels = torch.cat([image[:count] for image, count in zip(pixels, counts, strict=True)])
        images = self._merged_images(pixels, counts, sizes, inputs, compression.v2v)
        replaced = self._placeholders(sizes, counts)
        spans = [VisualSpan(image, count) for image, count in zip(images, replaced, strict=True)]
        return {self.config.image_token_id: spans}

    def _merged_images(
        self, pixels: Tensor, counts: list[int], sizes: Tensor, inputs: Mapping[str, Any], v2v: V2VConfig
    ) -> list[Tensor]:
        """Visual tokens [K * N0, D] of each image, in the order that `v2v.crop_order` names."""
        merged = self.scored(self.model.vision_tower, pixels, inputs, v2v)
        tokens = self.model.multi_modal_projector(merged.tokens).split(counts)
        if v2v.crop_order == "crops":
            return [image.flatten(0, 1) for image in tokens]
        vision, first, found = self.config.vision_config, 0, []
        for image, count, size in zip(tokens, counts, sizes, strict=True):
            down, across = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, vision.image_size)
            patches = vision.image_size // vision.patch_size
            order = raster_order(merged, slice(first, first + count), (across, down), patches)
            found.append(image.flatten(0, 1)[order])
            first += count
        return found

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
