"""Qwen3-VL as transformers has it: DeepStack features beside its tokens, time in words between a video's frames.

Blocks of the tower that the configuration names give further features of each group of patches (DeepStack,
https://arxiv.org/abs/2406.04334), which are added to its hidden state behind the first decoder layers, one block's
behind each. V2V merges them with the tokens they belong to, by the same choice and the same weights; T2V drops them
with those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from llava.compression.config import CompressionConfig
from llava.model.families.qwen_vl import QwenVLFamily
from llava.model.host_inputs import to_device
from llava.model.prefill import Prefill
from llava.model.stock_forward import forward_like


class Qwen3VLFamily(QwenVLFamily):
    """What the dense models share with the mixtures of experts: all but the class of transformers."""

    visual_inputs = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw", "mm_token_type_ids")

    def projectors(self) -> tuple[nn.Module, ...]:
        """The merger at the tower's end, and those of the DeepStack features."""
        return (self.model.visual.merger, self.model.visual.deepstack_merger_list)

    def scoring_block(self) -> int:
        """The last block: all of them attend to the whole image, and this one's features become the tokens."""
        blocks = len(self.model.visual.blocks)
        if blocks == 0:
            raise ValueError(
                "The vision tower has no blocks, so V2V has nothing to score by; mend vision_config in config.json, or "
                "use a compression with t2v alone."
            )
        return blocks - 1

    def prefill(
        self, inputs: Mapping[str, Any], compression: CompressionConfig, padding_side: str | None = None
    ) -> Prefill:
        """As in every family.

        Raises:
            ValueError: for visual tokens that came as embeddings, which are not all that the decoder needs of them.
        """
        layout = inputs.get("layout")
        if layout is not None and any(layout.visual) and len(self.model.visual.deepstack_merger_list):
            raise ValueError(
                "inputs_embeds with a layout hold visual tokens without their DeepStack features; give ids and pixels, "
                "or all that model.prefill returns as prefill."
            )
        return super().prefill(inputs, compression, padding_side)

    def tower_inputs(self, grid: Tensor, device: torch.device) -> dict[str, Any]:
        """As in every family, and how the learned positions are resampled to each image."""
        visual = self.model.visual
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
        )
        placed = super().tower_inputs(grid, device)
        return placed | {"interp_indices": to_device(indices, device), "interp_weights": to_device(weights, device)}

    def added(self, outputs: Any, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """DeepStack features."""
        if not outputs.deepstack_features:
            return [()] * len(sizes)
        by_layer = (torch.cat(layer).split(list(sizes)) for layer in outputs.deepstack_features)
        return list(zip(*by_layer, strict=True))


class CompressedQwen3VL(Qwen3VLFamily, Qwen3VLForConditionalGeneration):
    """`Qwen3VLForConditionalGeneration` with both stages inside; see `QwenVLFamily`."""

    stock = Qwen3VLForConditionalGeneration
    forward = forward_like(Qwen3VLForConditionalGeneration)
