"""LLaVA-NeXT (LLaVA-1.6) as transformers has it: an image is cut into crops, and a small one shows all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.v2v import V2VResult
from llava.model.crops import raster_order
from llava.model.families.clip import ClipFamily
from llava.model.families.hf_crops import joined_crops, merged_crops, without_padding
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like
from llava.model.traced_media import TracedMedium


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
        merged = self.scored(self.model.vision_tower, without_padding(pixels, counts), inputs, compression.v2v)
        tokens = self.model.multi_modal_projector(merged.tokens).split(counts)
        orders, newlines = self._orders(merged, counts, sizes, compression.v2v), self._newlines(sizes, counts)
        spans = [
            VisualSpan(image.flatten(0, 1) if order is None else image.flatten(0, 1)[order], len(flags))
            for image, order, flags in zip(tokens, orders, newlines, strict=True)
        ]
        return {self.config.image_token_id: spans}

    def _orders(self, merged: V2VResult, counts: Sequence[int], sizes: Tensor, v2v: V2VConfig) -> list[Tensor | None]:
        """In which order the tokens [K * N0] of the crops of each image stand, as `v2v.crop_order` names it."""
        if v2v.crop_order == "crops":
            return [None] * len(counts)
        config, first, found = self.config, 0, list[Tensor | None]()
        for count, size in zip(counts, sizes, strict=True):
            down, across = get_anyres_image_grid_shape(
                size, config.image_grid_pinpoints, config.vision_config.image_size
            )
            found.append(raster_order(merged, slice(first, first + count), (across, down), self._side))
            first += count
        return found

    def traced_media(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[str, list[TracedMedium]]:
        """What became of the patches of each `image`; arguments as in `visual_spans`."""
        pixels, sizes, v2v = inputs["pixel_values"], inputs["image_sizes"], compression.v2v
        if pixels is None or not len(pixels):
            return {"image": []}
        counts = [self._crops(size) for size in sizes]
        pixels = without_padding(pixels, counts)
        images = pixels.split(counts)
        if v2v is None:
            found = zip(images, sizes, self._newlines(sizes, counts), strict=True)
            return {"image": [joined_crops(*one, self.config) for one in found]}
        merged = self.scored(self.model.vision_tower, pixels, inputs, v2v)
        orders, numbers = self._orders(merged, counts, sizes, v2v), iter(range(len(pixels)))
        side, patch = self._side, self.config.vision_config.patch_size
        held = [[(merged, next(numbers)) for _ in image] for image in images]
        places = [None if order is None else order.argsort().tolist() for order in orders]
        of_each = zip(images, held, places, strict=True)
        return {"image": [merged_crops(crops, own, side, patch, False, order) for crops, own, order in of_each]}

    def _crops(self, size: Tensor) -> int:
        config = self.config
        return image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)

    def _newlines(self, sizes: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """bool [n] for each image, which of its n tokens without V2V are newlines.

        The stock packing decides, on features of width 1.
        """
        blank = [torch.zeros(count, self._side**2, 1) for count in counts]
        strategy = self.config.vision_feature_select_strategy
        packed, _ = self.model.pack_image_features(blank, sizes, strategy, image_newline=torch.ones(1))
        return [image[:, 0] > 0 for image in packed]
