"""A KV cache whose layers differ in length: each stage of the decoder remembers only the tokens that reached it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from llava.compression.config import CompressionConfig
from llava.compression.layout import TokenLayout, renumbered
from llava.model.packing import in_rows


@dataclass
class CachedStage:
    """What a run of consecutive layers has in common.

    Attributes:
        first_layer: first decoder layer of the stage.
        key_mask: bool [B, K] which cached positions are tokens, or None where all are.
        next_position: int64 [B, 1] rotary position of the next token of each row.
        columns: K, which each of the layers holds unless a call ended halfway.
    """

    first_layer: int
    key_mask: Tensor | None
    next_position: Tensor
    columns: int


class StagedCache(DynamicCache):
    """`DynamicCache` plus the key mask and next position of every stage; lives as long as one request.

    Args:
        config: configuration of the decoder; all its layers must attend to everything before them.

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
        self.filled_under: CompressionConfig | None = None
        """What the prompt was compressed by, where the model that filled the cache has said it."""
        self._expected: Tensor | None = None
        self._place: Tensor | None = None
        self._new = 0  # columns behind the prompt
        self._text_end: Tensor | None = None  # int64 scalar, columns that end the prompt and are text in every row

    @property
    def rows(self) -> int:
        """Rows of the batch; 0 while empty."""
        return len(self.stages[0].next_position) if self.stages else 0

    def begin_stage(self, first_layer: int, layout: TokenLayout) -> None:
        """Open a stage at prefill: `layout` says what the layers from `first_layer` on are about to cache."""
        rows, self._place = in_rows(layout) if layout.is_packed else (layout, None)
        if first_layer == 0:
            self.stages.clear()  # of a prompt that ended before a layer had cached it
            is_text = (rows.valid & ~rows.is_visual).all(dim=0)  # [L]
            self._new, self._text_end = 0, is_text.flip(0).long().cumprod(dim=0).sum()
        key_mask = rows.valid if rows.is_padded else None
        self.stages.append(CachedStage(first_layer, key_mask, rows.next_position(), rows.valid.shape[1]))

    def end_prompt(self) -> None:
        """All layers have cached the prompt; what comes next are new tokens."""
        self._place = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As in transformers; of packed rows [1, G, S, d] it keeps padded ones [B, G, L, d], and returns the stream."""
        if self._place is None:
            found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            return found
        place = self._place.to(key_states.device)  # [B, L]
        keys, values = (
            states[0].index_select(1, place.flatten()).unflatten(1, place.shape).transpose(0, 1)
            for states in (key_states, value_states)
        )
        super().update(keys, values, layer_idx, *args, **kwargs)
        return key_states, value_states

    def expect(self, valid: Tensor | None) -> None:
        """Say which of the tokens that come next, bool [B, n], are no padding; unsaid, all are tokens.

        Raises:
            ValueError: if layers do not hold what came before, because a call ended halfway.
        """
        ends = [stage.first_layer for stage in self.stages[1:]] + [len(self.layers)]
        for stage, end in zip(self.stages, ends, strict=True):
            if any(layer.get_seq_length() != stage.columns for layer in self.layers[stage.first_layer : end]):
                raise ValueError(
                    "past_key_values was left by a call that ended halfway: some layers hold its tokens, others do "
                    "not. Give the whole conversation without past_key_values."
                )
        self._expected = None if valid is None else valid.bool()

    def append(self, stage: CachedStage, count: int) -> Tensor:
        """Make room for `count` new tokens in every row of a stage; returns their positions, int64 [B, count]."""
        device = stage.next_position.device
        length, stage.columns = stage.columns, stage.columns + count
        self._new += count if stage is self.stages[0] else 0
        if self._expected is None:
            positions = stage.next_position + torch.arange(count, device=device)  # [B, 1] -> [B, count]
            stage.next_position = stage.next_position + count
            if stage.key_mask is not None:
                stage.key_mask = torch.cat([stage.key_mask, torch.ones_like(positions, dtype=torch.bool)], dim=1)
            return positions
        valid = self._expected.to(device)  # [B, count]
        positions = stage.next_position + renumbered(valid)
        stage.next_position = stage.next_position + valid.sum(dim=1, keepdim=True)
        held = valid.new_ones(len(valid), length) if stage.key_mask is None else stage.key_mask  # [B, length]
        stage.key_mask = torch.cat([held, valid], dim=1)  # [B, length + count]
        if stage is self.stages[-1]:
            self._expected = None
        return positions

    def discard(self, counts: Sequence[int]) -> None:
        """Forget the newest `counts[row]` tokens of each row, so that rows of a batch may end at different lengths.

        Transformers goes on feeding padding to a row whose answer has ended; that must not stay in the cache if the
        conversation is to go on.

        Raises:
            ValueError: if there is not one count for each row, or one is larger than `crop` takes.
        """
        if len(counts) != self.rows:
            raise ValueError(f"{len(counts)} counts were given for {self.rows} rows; give one for each row.")
        self._require_alike(max(counts, default=0))
        self.crop(-min(counts, default=0))
        rest = torch.tensor(counts) - min(counts, default=0)
        if not rest.any():
            return
        for stage in self.stages:
            keep = torch.arange(stage.columns) < stage.columns - rest[:, None]
            keep = keep.to(stage.next_position.device)
            held = torch.ones_like(keep) if stage.key_mask is None else stage.key_mask
            stage.next_position = stage.next_position - (held & ~keep).sum(dim=1, keepdim=True)
            stage.key_mask = held & keep

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.stages.clear()
        self.filled_under = None
        self._expected = self._place = self._text_end = None
        self._new = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest `-tokens_to_remove` tokens (a negative number, as in transformers).

        Raises:
            ValueError: if more are to go than stand behind visual tokens and padding. Layers may hold different numbers
                of these, and Qwen's positions do not count visual tokens one by one.
        """
        self._require_alike(-tokens_to_remove)
        super().crop(tokens_to_remove)
        if tokens_to_remove < 0 and self.get_seq_length() == 0:
            self.reset()
        elif tokens_to_remove < 0:
            for stage in self.stages:
                stage.columns += tokens_to_remove
                gone: int | Tensor = -tokens_to_remove
                if stage.key_mask is not None:
                    gone = stage.key_mask[:, tokens_to_remove:].sum(dim=1, keepdim=True)
                    stage.key_mask = stage.key_mask[:, :tokens_to_remove]
                stage.next_position = stage.next_position - gone
            if self._text_end is not None:
                self._text_end = self._text_end - max(-tokens_to_remove - self._new, 0)
            self._new = max(self._new + tokens_to_remove, 0)

    def _require_alike(self, count: int) -> None:
        """Raise ValueError unless the newest `count` columns are the same tokens in every layer."""
        if not self.stages or count <= self._new:
            return
        most = self._new + (0 if self._text_end is None else int(self._text_end))
        if count > most:
            raise ValueError(
                f"The newest {count} tokens of the cache cannot be forgotten, but {most}: what stands before these is "
                "visual or padding, or nothing. Give the whole conversation without past_key_values."
            )

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
            rows = torch.arange(self.rows).repeat_interleave(repeats)
            self._select_rows(rows)

    def _select_rows(self, rows: Tensor) -> None:
        for stage in self.stages:
            rows = rows.to(stage.next_position.device)
            stage.next_position = stage.next_position.index_select(0, rows)  # [B, 1] -> [rows, 1]
            if stage.key_mask is not None:
                stage.key_mask = stage.key_mask.index_select(0, rows)


def is_filled(cache: Any) -> bool:
    """Whether a cache already holds tokens."""
    return cache is not None and cache.get_seq_length() > 0


def key_value_bytes(cache: DynamicCache) -> int:
    """Bytes held by the keys and values of a cache, of this kind or transformers' own."""
    held = (tensor for layer in cache.layers if layer.is_initialized for tensor in (layer.keys, layer.values))
    return sum(tensor.numel() * tensor.element_size() for tensor in held if tensor is not None)
