"""The layout of a padded batch: padding, text, visual tokens and voters by position; updated by every drop.

Counts live on the host as plain integers: from them every length after a drop is known without asking the device.
Shapes: B rows, L positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """The rows of a batch, position by position.

    Attributes:
        valid: bool [B, L], False on padding.
        image: int64 [B, L], number of the image a visual token came from within its row; -1 on text and padding.
        visual_index: int64 [B, L], rank of a visual token among those of its row that entered the decoder; else -1.
        vote: bool [B, L], may this token vote on visual tokens.
        positions: int64 [B, L], rotary position; [A, B, L] where it has several axes (M-RoPE); 0 on padding.
        lengths: valid tokens of each row.
        visual: visual tokens of each row that are still there.
        entered: visual tokens of each row that entered the decoder.
        max_votes: no row has more voters than this.
        padding_side: "right" or "left"; rows with gaps count as "left".
        following: int64 [B, 1], position of whatever comes behind each row; None: one more than its largest.
        columns: int64 [B, L], column of the caller's input that each token belongs to, never falling along a row, -1 on
            padding; None where the layout itself is the input.
    """

    valid: Tensor
    image: Tensor
    visual_index: Tensor
    vote: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    visual: tuple[int, ...]
    entered: tuple[int, ...]
    max_votes: int
    padding_side: str = "right"
    following: Tensor | None = None
    columns: Tensor | None = None

    @classmethod
    def of_text(cls, valid: Tensor) -> TokenLayout:
        """Layout of a batch without any visual token, from its attention mask [B, L]; waits for the device."""
        valid = valid.bool()
        padded_on_the_right = not bool((valid[:, 1:] & ~valid[:, :-1]).any())
        lengths = tuple(valid.sum(dim=1).tolist())
        return cls._text(valid, lengths, "right" if padded_on_the_right else "left")

    @classmethod
    def of_full_text(cls, batch: int, length: int, device: torch.device) -> TokenLayout:
        """Layout of `batch` rows of `length` text tokens without padding."""
        return cls._text(torch.ones(batch, length, dtype=torch.bool, device=device), (length,) * batch, "right")

    @classmethod
    def _text(cls, valid: Tensor, lengths: tuple[int, ...], padding_side: str) -> TokenLayout:
        none = torch.full_like(valid, -1, dtype=torch.long)
        zero = (0,) * len(lengths)
        votes = torch.zeros_like(valid)
        return cls(valid, none, none, votes, renumbered(valid), lengths, zero, zero, 0, padding_side)

    @property
    def is_visual(self) -> Tensor:
        """bool [B, L]: visual tokens."""
        return self.image >= 0

    @property
    def is_padded(self) -> bool:
        """Whether any row is shorter than the batch (known on the host)."""
        return min(self.lengths, default=0) < self.valid.shape[1]

    @property
    def needs_mask(self) -> bool:
        """Whether causal attention alone would let a token see padding: only padding in front of it does."""
        return self.is_padded and self.padding_side == "left"

    def attention_mask(self) -> Tensor | None:
        """bool [B, L] for a mask builder, or None where causal attention alone is right."""
        return self.valid if self.needs_mask else None

    def by_visual_index(self, values: Tensor, fill: float) -> Tensor:
        """Values [B, L] of visual tokens, laid out [B, N] by their rank among the N that entered; `fill` elsewhere."""
        most = max(self.entered, default=0)
        laid_out = values.new_full((len(self.entered), most + 1), fill)  # [B, 1 + N]; others go to column 0
        return laid_out.scatter_(1, self.visual_index + 1, values)[:, 1:]

    def alive(self) -> Tensor:
        """bool [B, N]: which of the visual tokens that entered the decoder are still there."""
        return self.by_visual_index(self.is_visual, False)

    def at_positions(self, positions: Tensor) -> TokenLayout:
        """The same layout with other rotary positions, broadcastable to [B, L] or [A, B, L]."""
        axes = positions.shape[:1] if positions.dim() == 3 else ()
        return dataclasses.replace(self, positions=positions.expand(*axes, *self.valid.shape))

    def input_columns(self) -> Tensor:
        """int64 [B, L]: `columns`, or the token's own place where the layout itself is the input; -1 on padding."""
        if self.columns is not None:
            return self.columns
        place = torch.arange(self.valid.shape[1], device=self.valid.device)  # [L]
        return place.expand(self.valid.shape).masked_fill(~self.valid, -1)

    def next_position(self) -> Tensor:
        """int64 [B, 1]: the position, on every axis, of a text token behind each row."""
        if self.following is not None:
            return self.following
        largest = self.positions.amax(dim=-1, keepdim=True)  # [B, 1] or [A, B, 1]
        return (largest.amax(dim=0) if largest.dim() == 3 else largest) + 1

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout with its tensors on a device; does not wait for a copy to an accelerator."""
        to_accelerator = torch.device(device).type != "cpu"
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=to_accelerator))

    def repeat_interleave(self, repeats: int) -> TokenLayout:
        """Each row `repeats` times, as beam search and several returned sequences ask."""
        lengths, visual, entered = (
            tuple(count for count in counts for _ in range(repeats))
            for counts in (self.lengths, self.visual, self.entered)
        )
        repeated = self.map_tensors(lambda tensor: tensor.repeat_interleave(repeats, dim=-2))
        return dataclasses.replace(repeated, lengths=lengths, visual=visual, entered=entered)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> TokenLayout:
        """The same layout with other tensors, on a device for example."""
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]


def renumbered(valid: Tensor) -> Tensor:
    """Positions 0..n-1 over the valid tokens of each row [B, L]; 0 on padding."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0) * valid
