"""What Qwen's vision-language models share: images of any size, no CLS token, patches merged two by two, 3-D positions.

What is compressed are the tokens that the language model would see, each made of a group of 2 x 2 patches. A group's
score is the attention that its patches receive, its key the mean of theirs, in the last block that attends to the
whole image (paper section 3.1). Survivors keep their 3-D position, in both stages, and spatial order.
Shapes: P patches of all images, N = P / 4 groups, n groups of one image or frame, H heads, d head width, D width.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids

from llava.compression.config import CompressionConfig, V2VConfig
from llava.compression.selection import without_autocast
from llava.compression.v2v import merge_visual_tokens
from llava.model.accepted_inputs import is_attention_matrix, separated, stands_apart, starts_anew
from llava.model.compressed_model import CompressedModel
from llava.model.host_inputs import to_device
from llava.model.placeholders import VisualSpan
from llava.model.traced_media import TracedMedium, TracedUnit, frame_parts, merged_unit, plain_unit

_MAX_ATTENTION_ELEMENTS = 2**26


class QwenVLFamily(CompressedModel):
    """A family of Qwen's. Each image, and each frame (temporal patch) of a video, has the budget to itself.

    Budgets are caps (paper Table 15): an image with no more tokens than the budget keeps all of them.
    """

    position_axes = (3, 4)
    rope_inputs: ClassVar[tuple[str, ...]] = ("image_grid_thw", "video_grid_thw")
    """What the stock model computes 3-D positions from, beside ids and their kinds."""

    def stands_apart(self, inputs: Mapping[str, Any], caching: bool) -> bool:
        """As in every family, but a jump forward is no border: images and videos make such jumps."""
        positions, mask, ids = (inputs.get(name) for name in ("position_ids", "attention_mask", "input_ids"))
        if positions is None or positions.dim() == 2 or is_attention_matrix(mask):
            return stands_apart(positions, mask, caching=True)
        if len(positions) == 4:
            return starts_anew(positions[0], mask)
        # On the axis of time a video may reach further than the text behind it, but text goes forward.
        time = positions[0]
        text = torch.ones_like(time, dtype=torch.bool)
        if ids is not None:
            text = ((ids != self.config.image_token_id) & (ids != self.config.video_token_id)).to(time.device)
        if mask is not None:
            text = text & mask.bool().to(time.device)
        furthest = time.masked_fill(~text, torch.iinfo(time.dtype).min).cummax(dim=1).values
        return bool((text[:, 1:] & (time[:, 1:] <= furthest[:, :-1])).any())

    def separating_positions(self, position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """[4, B, T]: in front of the axes of the rotation, the counting that separates sequences."""
        axes = position_ids if position_ids.dim() == 3 else position_ids[None].expand(3, -1, -1)
        return torch.cat([separated(axes[0], attention_mask)[None], axes[-3:]])

    @abstractmethod
    def scoring_block(self) -> int:
        """Index of the last block of the tower that attends to a whole image.

        Raises:
            ValueError: if there is none.
        """

    def tower_inputs(self, grid: Tensor, device: torch.device) -> dict[str, Any]:
        """What the stock tower else computes itself from the sizes of images, waiting for the device they are on.

        Args:
            grid: int64 [images, 3], frames, rows and columns of patches.
            device: of the pixels.
        """
        visual = self.model.visual
        ends, longest = get_vision_attention_seqlens(grid, visual.config)
        placed = {"position_ids": to_device(get_vision_position_ids(grid, visual.spatial_merge_size), device)}
        if longest is None:  # attention frame by frame, in pieces whose lengths the host has to know
            return placed | {"cu_seqlens": ends}
        return placed | {"cu_seqlens": to_device(ends, device), "max_seqlen": longest}

    def as_groups_follow(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Patches [P, D] inside the tower in the order in which the images' groups follow in the prompt."""
        return patches

    def added(self, outputs: Any, sizes: Sequence[int]) -> list[tuple[Tensor, ...]]:
        """What the tower gives beside the tokens of each frame: features [n, D] for decoder layers 0, 1, ..."""
        return [()] * len(sizes)

    def vision_towers(self) -> tuple[nn.Module, ...]:
        """One for images and videos."""
        return (self.model.visual,)

    def projectors(self) -> tuple[nn.Module, ...]:
        """The merger at the tower's end, which makes one token of each group of patches."""
        return (self.model.visual.merger,)

    def check_tower(self) -> None:
        """Refuse towers in which no block attends to a whole image."""
        self.scoring_block()

    def has_cls(self) -> bool:
        """No: patches are scored by what they receive."""
        return False

    def fitted(self, compression: CompressionConfig) -> CompressionConfig:
        """Positions are three-dimensional, and stay."""
        fitted = super().fitted(compression)
        t2v = None if fitted.t2v is None else dataclasses.replace(fitted.t2v, positions="original")
        return dataclasses.replace(fitted, t2v=t2v)

    def visual_spans(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[int, list[VisualSpan]]:
        """One span an image, and one a frame (a temporal patch) of a video.

        The tower runs once for both: with images on some ranks and videos on others, all make the same calls.
        """
        kinds = self._kinds
        given = [(token, inputs[name], inputs[grid]) for _, token, name, grid in kinds if inputs[name] is not None]
        spans: dict[int, list[VisualSpan]] = {token: [] for _, token, _, _ in kinds}
        if not given:
            return spans
        pixels, grid = (torch.cat(parts) for parts in list(zip(*given, strict=True))[1:])  # [P, d], [images, 3]
        made = iter(self._spans(pixels, grid, compression.v2v))
        for token, _, own in given:
            spans[token] = list(itertools.islice(made, int(own[:, 0].sum())))
        return spans

    def traced_media(self, compression: CompressionConfig, inputs: Mapping[str, Any]) -> dict[str, list[TracedMedium]]:
        """What became of the groups of patches of each `image` and `video`; arguments as in `visual_spans`."""
        spans = self.visual_spans(compression, inputs)
        found: dict[str, list[TracedMedium]] = {}
        for kind, token, pixels, grid in self._kinds:
            sizes = [] if inputs[grid] is None else inputs[grid].tolist()
            seen = inputs[pixels].split([math.prod(size) for size in sizes]) if sizes else ()
            left = iter(spans[token])
            found[kind] = [
                self._traced(list(itertools.islice(left, size[0])), patches, size, kind)
                for size, patches in zip(sizes, seen, strict=True)
            ]
        return found

    @property
    def _kinds(self) -> tuple[tuple[str, int, str, str], ...]:
        """Images and videos: their placeholder, and the inputs that hold their patches and the grid of these."""
        return (
            ("image", self.config.image_token_id, "pixel_values", "image_grid_thw"),
            ("video", self.config.video_token_id, "pixel_values_videos", "video_grid_thw"),
        )

    def _traced(self, frames: Sequence[VisualSpan], patches: Tensor, size: Sequence[int], kind: str) -> TracedMedium:
        """An image or a video of spans, the patches behind them and its grid (see `unflattened`)."""
        side = self.model.visual.spatial_merge_size
        shape = size[1] // side, size[2] // side
        shown = unflattened(patches, size, self.config.vision_config)
        parts = frame_parts(len(frames)) if kind == "video" else [""]
        units: list[TracedUnit] = []
        first = 0
        for span, pixels, part in zip(frames, shown, parts, strict=True):
            if span.merged is None:
                units.append(plain_unit(pixels, shape, range(first, first + len(span.features)), part))
            else:
                # Tokens stand in the order of their patches.
                places = [first + place for place in span.merged.source[0].argsort().argsort().tolist()]
                units.append(merged_unit(pixels, shape, span.merged, 0, places, part))
            first += len(span.features)
        return TracedMedium(units, first)

    def _spans(self, pixels: Tensor, grid: Tensor, v2v: V2VConfig | None) -> list[VisualSpan]:
        sizes = [height * width // self._group for time, height, width in grid.tolist() for _ in range(time)]
        block = -1 if v2v is None else self.scoring_block()
        needs = {} if v2v is None else {"output_hidden_states": [block]}
        placed = self.tower_inputs(grid, pixels.device)
        outputs = self.model.get_image_features(pixels, grid, return_dict=True, **placed, **needs)
        frames = torch.cat(outputs.pooler_output).split(sizes)
        made = zip(frames, self.added(outputs, sizes), strict=True)
        spans = [VisualSpan(frame, len(frame), added=added) for frame, added in made]
        if v2v is None:
            return spans
        evidence = self._evidence(block, outputs.hidden_states[block].detach(), grid, sizes, v2v)
        return [_merged(span, *seen, v2v) for span, seen in zip(spans, evidence, strict=True)]

    @property
    def _group(self) -> int:
        """Patches that become one visual token."""
        return self.model.visual.spatial_merge_unit

    @torch.no_grad()
    def _evidence(
        self, block_index: int, hidden_states: Tensor, grid: Tensor, sizes: list[int], v2v: V2VConfig
    ) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Attention received float32 [n] of each frame, keys [n, d], and the map float32 [n, n] where it is needed.

        Args:
            block_index: index of the block whose attention counts.
            hidden_states: [P, D] that go into it, in the tower's order.
            grid: int64 [images, 3] of all images or videos.
            sizes: groups of each frame.
            v2v: what is asked for.
        """
        visual = self.model.visual
        hidden_states = self.as_groups_follow(hidden_states, grid)
        places = to_device(get_vision_position_ids(grid, visual.spatial_merge_size), hidden_states.device)
        cos, sin = visual.rotary_pos_emb(hidden_states, places)
        block = visual.blocks[block_index]
        qkv = block.attn.qkv(block.norm1(hidden_states)).unflatten(-1, (3, block.attn.num_heads, -1))
        queries, plain_keys, _ = qkv.unbind(1)  # [P, H, d]
        queries, keys = apply_rotary_pos_emb_vision(queries, plain_keys, cos, sin)
        first = 0
        for size in sizes:
            part = slice(first, first + size * self._group)
            grouped = plain_keys[part].unflatten(0, (size, self._group)).mean(dim=(1, 2))
            maps = _group_rows(queries[part], keys[part], block.attn.scaling, self._group)
            if v2v.clusters == "neighbours":
                whole = torch.cat(list(maps))
                yield whole.mean(dim=0), grouped, whole
            else:
                yield sum(rows.sum(dim=0) for rows in maps) / size, grouped, None  # type: ignore[misc]
            first = part.stop

    def rotary_positions(
        self, input_ids: Tensor, attention_mask: Tensor | None, inputs: Mapping[str, Any]
    ) -> Tensor | None:
        """The 3-D positions [3, B, T] of the uncompressed prompt."""
        given = inputs.get("position_ids")
        if given is not None:
            axes = given[-3:] if given.dim() == 3 else given[None].expand(3, -1, -1)
            return axes.expand(-1, len(input_ids), -1)
        kinds = inputs.get("mm_token_type_ids")
        if kinds is None:
            kinds = (input_ids == self.config.image_token_id).int() + 2 * (
                input_ids == self.config.video_token_id
            ).int()
        if attention_mask is not None:  # the stock model has no positions for a row of padding alone
            valid = attention_mask.bool()
            first = torch.arange(valid.shape[1], device=valid.device) == 0
            attention_mask = valid | (first & ~valid.any(dim=1, keepdim=True))
            kinds = kinds * valid.to(kinds.device)
        positions, _ = self.model.get_rope_index(
            input_ids.long(),
            mm_token_type_ids=kinds,
            attention_mask=attention_mask,
            **{name: inputs.get(name) for name in self.rope_inputs},
        )
        return positions


def _group_rows(queries: Tensor, keys: Tensor, scaling: float, group: int) -> Iterator[Tensor]:
    """Rows of the attention map between groups, float32 [some, n], a few at a time; mean over heads and patches.

    Args:
        queries, keys: [P, H, d] of one frame, rotated, patches of a group next to each other.
        scaling: scaling of the dot product.
        group: patches in a group.
    """
    queries, keys = queries.transpose(0, 1).float(), keys.transpose(0, 1).float()
    heads, patches, _ = queries.shape
    rows = max(1, _MAX_ATTENTION_ELEMENTS // (heads * patches * group)) * group
    for part in queries.split(rows, dim=1):
        with without_autocast(keys.device):
            weights = (part @ keys.transpose(1, 2) * scaling).softmax(dim=-1).mean(dim=0)  # [rows, P]
        yield weights.unflatten(0, (-1, group)).unflatten(2, (-1, group)).mean(dim=(1, 3))


def _merged(span: VisualSpan, received: Tensor, keys: Tensor, attention: Tensor | None, v2v: V2VConfig) -> VisualSpan:
    """V2V on one frame, in spatial order; what is added to decoder layers is a part of each token."""
    size, width = span.features.shape
    if size <= sum(v2v.counts(size)):
        return span
    whole = None if attention is None else attention[None]
    tokens = torch.cat([span.features, *span.added], dim=-1)  # [n, D, and D for each layer]
    result = merge_visual_tokens(tokens[None], None, keys[None], v2v, whole, received[None], has_cls=False)
    source = result.source[0]
    order = source.argsort()
    features, *added = result.tokens[0][order].split(width, dim=-1)
    return VisualSpan(features, size, source[order], tuple(added), result)


def unflattened(patches: Tensor, grid: Sequence[int], vision: Any) -> list[Tensor]:
    """The pictures behind the patches that Qwen's processors make: the first frame of each group in time.

    Args:
        patches: [T * H * W, 3 * frames of a group * side * side], those of a merged group next to each other.
        grid: T, H, W: groups in time, patches down and across.
        vision: configuration of the tower.

    Returns:
        [3, H * side, W * side] for each group in time.
    """
    time, height, width = grid
    merge, side, together = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    split = patches.view(time, height // merge, width // merge, merge, merge, 3, together, side, side)
    frames = split.permute(0, 6, 5, 1, 3, 7, 2, 4, 8)  # [T, together, 3, rows, merge, side, columns, merge, side]
    return list(frames.reshape(time, together, 3, height * side, width * side)[:, 0])
