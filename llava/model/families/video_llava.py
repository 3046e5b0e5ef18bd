"""Video-LLaVA as transformers has it: images and videos of several frames, each with a tower of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import VideoLlavaForConditionalGeneration

from llava.compression.config import CompressionConfig
from llava.model.compressed_model import CompressedModel
from llava.model.families.clip import check_tower, image_tokens, merged_features
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedVideoLlava(CompressedModel, VideoLlavaForConditionalGeneration):
    """`VideoLlavaForConditionalGeneration` with both stages inside.

    V2V shortens every frame by itself (paper Table 14: 160 + 32 of 257 tokens, eight frames); all frames of a row
    compete in T2V. A frame's CLS token is one of its visual tokens, with and without V2V, an image's with V2V only.
    """

    stock = VideoLlavaForConditionalGeneration
    visual_inputs = (
        "pixel_values",
        "pixel_values_images",
        "pixel_values_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    forward = forward_like(VideoLlavaForConditionalGeneration)

    def check_tower(self) -> None:
        """Refuse towers unlike CLIP's, and features of several layers."""
        for tower in (self.model.image_tower, self.model.video_tower):
            check_tower(tower, self.config.vision_feature_layer)

    def tower_tokens(self) -> int | None:
        """Tokens of one image or frame, CLS included."""
        return image_tokens(self.model.image_tower)

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, and one a frame."""
        images = inputs["pixel_values"] if inputs["pixel_values_images"] is None else inputs["pixel_values_images"]
        videos = inputs["pixel_values_videos"]
        select = {
            name: inputs[name]
            for name in ("vision_feature_layer", "vision_feature_select_strategy")
            if inputs[name] is not None
        }
        spans: dict[int, list[VisualSpan]] = {self.config.image_token_id: [], self.config.video_token_id: []}
        if images is not None:
            spans[self.config.image_token_id] = self._image_spans(images, compression, select)
        if videos is not None:
            spans[self.config.video_token_id] = self._frame_spans(videos, compression, select)
        return spans

    def _image_spans(self, images: Any, compression: CompressionConfig, select: dict[str, Any]) -> list[VisualSpan]:
        if compression.v2v is None:
            features = self.model.get_image_features(images, **select, return_dict=True).pooler_output
            return [VisualSpan(image, len(image)) for image in features]
        tower = self.model.image_tower
        layer = select.get("vision_feature_layer", self.config.vision_feature_layer)
        strategy = select.get("vision_feature_select_strategy", self.config.vision_feature_select_strategy)
        merged = merged_features(tower, self.model.multi_modal_projector, images, layer, compression.v2v)
        return [VisualSpan(image, image_tokens(tower) - (strategy == "default")) for image in merged]

    def _frame_spans(self, videos: Any, compression: CompressionConfig, select: dict[str, Any]) -> list[VisualSpan]:
        layer = select.get("vision_feature_layer", self.config.vision_feature_layer)
        if compression.v2v is None:
            of_layer = {"vision_feature_layer": layer, "return_dict": True}
            features = self.model.get_video_features(videos, **of_layer).pooler_output
            return [VisualSpan(frame, len(frame)) for frame in features]
        tower, projector = self.model.video_tower, self.model.multi_modal_projector
        merged = merged_features(tower, projector, videos.flatten(0, 1), layer, compression.v2v)
        return [VisualSpan(frame, image_tokens(tower)) for frame in merged]
