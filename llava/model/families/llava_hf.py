"""LLaVA-1.5 as transformers has it (`llava-hf/llava-1.5-7b-hf` and its relatives)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlavaForConditionalGeneration

from llava.compression.config import CompressionConfig
from llava.model.families.clip import ClipFamily, image_tokens
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedLlava(ClipFamily, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` with both stages inside."""

    stock = LlavaForConditionalGeneration
    visual_inputs = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    forward = forward_like(LlavaForConditionalGeneration)

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image."""
        if inputs["pixel_values"] is None:
            return {self.config.image_token_id: []}
        if compression.v2v is None:
            return {self.config.image_token_id: self.stock_spans(inputs)}
        tower = self.model.vision_tower
        merged = self.merged(tower, inputs["pixel_values"], inputs, compression.v2v)
        replaced = image_tokens(tower) - (self.selected(inputs)[1] == "default")
        return {self.config.image_token_id: [VisualSpan(image, replaced) for image in merged]}
