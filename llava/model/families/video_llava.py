"""Video-LLaVA as transformers has it: images and videos of several frames, each with a tower of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import VideoLlavaForConditionalGeneration

from llava.compression.config import CompressionConfig
from llava.model.families.clip import ClipFamily, image_tokens
from llava.model.placeholders import VisualSpan
from llava.model.stock_forward import forward_like


class CompressedVideoLlava(ClipFamily, VideoLlavaForConditionalGeneration):
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

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, and one a frame."""
        images = inputs["pixel_values"] if inputs["pixel_values_images"] is None else inputs["pixel_values_images"]
        videos = inputs["pixel_values_videos"]
        return {
            self.config.image_token_id: [] if images is None else self._image_spans(images, compression, inputs),
            self.config.video_token_id: [] if videos is None else self._frame_spans(videos, compression, inputs),
        }

    def _image_spans(self, images: Any, compression: CompressionConfig, inputs: Mapping[str, Any]) -> list[VisualSpan]:
        layer, strategy = self.selected(inputs)
        if compression.v2v is None:
            select = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
            return self.stock_spans({"pixel_values": images, **select})
        tower = self.model.image_tower
        replaced = image_tokens(tower) - (strategy == "default")
        return [VisualSpan(image, replaced) for image in self.merged(tower, images, inputs, compression.v2v)]

    def _frame_spans(self, videos: Any, compression: CompressionConfig, inputs: Mapping[str, Any]) -> list[VisualSpan]:
        if compression.v2v is None:
            select = {"vision_feature_layer": self.selected(inputs)[0], "return_dict": True}
            features = self.model.get_video_features(videos, **select).pooler_output
            return [VisualSpan(frame, len(frame)) for frame in features]
        tower = self.model.video_tower
        merged = self.merged(tower, videos.flatten(0, 1), inputs, compression.v2v)
        return [VisualSpan(frame, image_tokens(tower)) for frame in merged]
