"""Qwen2.5-VL as transformers has it: a tower of windows, in which a few blocks see the whole image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils.generic import get_max_seqlen
from transformers.vision_utils import get_vision_window_index

from llava.model.families.qwen_vl import QwenVLFamily
from llava.model.host_inputs import to_device
from llava.model.stock_forward import forward_like


class CompressedQwen2_5_VL(QwenVLFamily, Qwen2_5_VLForConditionalGeneration):  # noqa: N801 (theirs)
    """`Qwen2_5_VLForConditionalGeneration` with both stages inside; see `QwenVLFamily`."""

    stock = Qwen2_5_VLForConditionalGeneration
    visual_inputs = (
        "pixel_values",
        "pixel_values_videos",
        "image_grid_thw",
        "video_grid_thw",
        "mm_token_type_ids",
        "second_per_grid_ts",
    )
    rope_inputs = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    forward = forward_like(Qwen2_5_VLForConditionalGeneration)

    def scoring_block(self) -> int:
        """The last of `fullatt_block_indexes`."""
        visual = self.model.visual
        blocks = [block for block in visual.fullatt_block_indexes if 0 <= block < len(visual.blocks)]
        if not blocks:
            raise ValueError(
                f"fullatt_block_indexes is {list(visual.fullatt_block_indexes)}, so none of the tower's "
                f"{len(visual.blocks)} blocks attends to a whole image, and V2V has nothing to score by; mend "
                "vision_config in config.json, or use a compression with t2v alone."
            )
        return max(blocks)

    def tower_inputs(self, grid: Tensor, device: torch.device) -> dict[str, Any]:
        """As in every family, and the windows in which most blocks attend."""
        visual = self.model.visual
        window, ends = self._windows(grid)
        placed = super().tower_inputs(grid, device) | {"window_index": to_device(window, device)}
        longest = get_max_seqlen(ends, visual.config)
        if longest is None:
            return placed | {"cu_window_seqlens": ends}
        return placed | {"cu_window_seqlens": to_device(ends, device), "max_window_seqlen": longest}

    def _windows(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """The groups in the order of the windows, int64 [N], and where each window ends among the patches."""
        visual = self.model.visual
        return get_vision_window_index(grid, visual.spatial_merge_size, visual.window_size, visual.patch_size)

    def as_groups_follow(self, patches: Tensor, grid: Tensor) -> Tensor:
        """The tower's order is that of its windows."""
        order = to_device(torch.argsort(self._windows(grid)[0]), patches.device)
        return patches.unflatten(0, (-1, self.model.visual.spatial_merge_unit))[order].flatten(0, 1)
