"""LLaVA-1.5 as transformers has it (`llava-hf/llava-1.5-7b-hf` and its relatives)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import LlavaForConditionalGeneration

from llava.compression.config import CompressionConfig
from llava.model.compressed_model import CompressedModel
from llava.model.families.clip import check_tower, fitted_to, image_tokens, merged_features
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedLlava(CompressedModel, LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` with both stages inside."""

    stock = LlavaForConditionalGeneration
    visual_inputs = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
    forward = forward_like(LlavaForConditionalGeneration)

    def check_tower(self) -> None:
        """Refuse towers unlike CLIP's, and features of several layers."""
        check_tower(self.model.vision_tower, self.config.vision_feature_layer)

    def tower_tokens(self) -> int | None:
        """Tokens of the tower, CLS included; None for towers whose images differ in size."""
        return image_tokens(self.model.vision_tower) if hasattr(self.model.vision_tower, "embeddings") else None

    def fitted(self, compression: CompressionConfig) -> CompressionConfig:
        """For a tower without a CLS token, such as SigLIP's."""
        return fitted_to(self.model.vision_tower, compression)

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image."""
        if inputs["pixel_values"] is None:
            return {self.config.image_token_id: []}
        given = {name: value for name, value in inputs.items() if value is not None}
        if compression.v2v is None:
            features = self.model.get_image_features(**given, return_dict=True).pooler_output
            return {self.config.image_token_id: [VisualSpan(image, len(image)) for image in features]}
        layer = given.get("vision_feature_layer", self.config.vision_feature_layer)
        strategy = given.get("vision_feature_select_strategy", self.config.vision_feature_select_strategy)
        tower, projector = self.model.vision_tower, self.model.multi_modal_projector
        merged = merged_features(tower, projector, inputs["pixel_values"], layer, compression.v2v)
        replaced = image_tokens(tower) - (strategy == "default")
        return {self.config.image_token_id: [VisualSpan(image, replaced) for image in merged]}
