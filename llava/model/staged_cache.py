"""A KV cache whose layers differ in length: each stage of the decoder remembers only the tokens that reached it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from llava.compression.layout import TokenLayout


@dataclass
class CachedStage:
    """What a run of consecutive layers has in common.

    Attributes:
        first_layer: first decoder layer of the stage.
        key_mask: bool [B, K] which cached positions are tokens, or None where all are.
        next_position: int64 [B, 1] rotary position of the next token of each row.
    """

    first_layer: int
    key_mask: Tensor | None
    next_position: Tensor


class StagedCache(DynamicCache):
    """`DynamicCache` plus the key mask and next position of every stage; lives as long as one request.

    Args:
        config: of the decoder; all its layers must attend to everything before them.

    Raises:
        ValueError: if a layer has a sliding window, which cannot be told apart from a drop.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        if any(self.is_sliding):
            raise ValueError(
                "The decoder has sliding-window layers, which a staged cache does not support; "
                "use a decoder with full attention in every layer."
            )
        self.stages: list[CachedStage] = []

    def begin_stage(self, first_layer: int, layout: TokenLayout) -> None:
        """Open a stage at prefill: `layout` says what the layers from `first_layer` on are about to cache."""
        key_mask = layout.valid if layout.is_padded else None
        next_position = layout.positions.amax(dim=1, keepdim=True) + 1
        self.stages.append(CachedStage(first_layer, key_mask, next_position))

    def append(self, stage: CachedStage, count: int) -> Tensor:
        """Make room for `count` new tokens in every row of a stage; returns their positions, int64 [B, count]."""
        positions = stage.next_position + torch.arange(count, device=stage.next_position.device)
        stage.next_position = stage.next_position + count
        if stage.key_mask is not None:
            stage.key_mask = torch.cat([stage.key_mask, torch.ones_like(positions, dtype=torch.bool)], dim=1)
        return positions

    def key_value_bytes(self) -> int:
        """Bytes held by the cached keys and values."""
        held = (tensor for layer in self.layers if layer.is_initialized for tensor in (layer.keys, layer.values))
        return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.stages.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens (a negative number, as in transformers)."""
        super().crop(tokens_to_remove)
        if tokens_to_remove < 0:
            for stage in self.stages:
                stage.next_position = stage.next_position + tokens_to_remove
                if stage.key_mask is not None:
                    stage.key_mask = stage.key_mask[:, :tokens_to_remove]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Follow the beams that survived."""
        super().reorder_cache(beam_idx)
        self._select_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows of the batch."""
        super().batch_select_indices(indices)
        self._select_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.stages:
            rows = torch.arange(len(self.stages[0].next_position)).repeat_interleave(repeats)
            self._select_rows(rows)

    def _select_rows(self, rows: Tensor) -> None:
        for stage in self.stages:
            rows = rows.to(stage.next_position.device)
            stage.next_position = stage.next_position.index_select(0, rows)
            if stage.key_mask is not None:
                stage.key_mask = stage.key_mask.index_select(0, rows)
