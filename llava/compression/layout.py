"""The layout of a batch: padding, text, visual tokens and voters by position; updated by every drop.

Two forms: padded, rows of equal length [B, L], and packed, rows end to end in one stream [1, S] without padding.
Counts live on the host as plain integers: from them every length after a drop is known without asking the device.
Shapes: B rows, L positions; where a tensor is [B, L], the packed form has [1, S].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

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
        rows: int64 [1, S], row of each token, in the packed form; None in the padded one.
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
    rows: Tensor | None = None

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
        return not self.is_packed and min(self.lengths, default=0) < self.valid.shape[1]

    @property
    def is_packed(self) -> bool:
        """Whether rows stand end to end."""
        return self.rows is not None

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each row begins in its line of the tensors: 0 in the padded form."""
        return tuple(accumulate(self.lengths[:-1], initial=0)) if self.is_packed else (0,) * len(self.lengths)

    @property
    def needs_mask(self) -> bool:
        """Whether causal attention alone would let a token see padding: only padding in front of it does."""
        return self.is_padded and self.padding_side == "left"

    def attention_mask(self) -> Tensor | None:
        """bool [B, L] for a mask builder, or None where causal attention alone is right."""
        return self.valid if self.needs_mask else None

    def by_visual_index(self, values: Tensor, fill: float) -> Tensor:
        """Values [B, L] of visual tokens, laid out [B, N] by their rank among the N that entered; `fill` elsewhere."""
        width = max(self.entered, default=0) + 1
        laid_out = values.new_full((len(self.entered), width), fill)  # [B, 1 + N]; others go to column 0
        slot = self.row_numbers() * width + self.visual_index + 1  # [B, L]
        laid_out.view(-1).scatter_(0, slot.flatten(), values.flatten())
        return laid_out[:, 1:]

    def alive(self) -> Tensor:
        """bool [B, N]: which of the visual tokens that entered the decoder are still there."""
        return self.by_visual_index(self.is_visual, False)

    def row_numbers(self) -> Tensor:
        """int64 [B, 1], or [1, S] in the packed form: the row of each position."""
        return torch.arange(len(self.lengths), device=self.valid.device)[:, None] if self.rows is None else self.rows

    def each(self, numbers: Sequence[int]) -> Tensor:
        """A number of each row at its positions, int64 [B, 1] or [1, S]; does not wait for the device."""
        values = torch.tensor(numbers, dtype=torch.long).to(self.valid.device, non_blocking=True)
        return values[:, None] if self.rows is None else values[self.rows]

    def take(self, values: Tensor, index: Tensor) -> Tensor:
        """Values [B, L, D] at positions [B, V] of their rows, or [1, S, D] at places of the stream: [B, V, D].

        Only the index is kept for the backward pass.
        """
        first = 0 if self.is_packed else self.row_numbers() * values.shape[1]
        return values.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)

    def counted(self) -> Tensor:
        """int64 [B, L]: positions 0..n-1 over the tokens of each row; 0 on padding."""
        if self.rows is None:
            return renumbered(self.valid)
        return torch.arange(self.rows.shape[1], device=self.rows.device) - self.each(self.starts)

    def packed(self) -> tuple[TokenLayout, Tensor]:
        """The same tokens packed, and int64 [S] where each stood among the B * L positions; the device is not asked."""
        index = torch.argsort((~self.valid).flatten().int(), stable=True)[: sum(self.lengths)]  # [S]
        columns, rows = self.input_columns(), self.row_numbers().expand(self.valid.shape)
        laid_out = dataclasses.replace(self, columns=columns, rows=rows, following=None, padding_side="right")
        travel = laid_out.map_tensors(lambda values: values.flatten(-2).index_select(-1, index).unsqueeze(-2))
        return dataclasses.replace(travel, following=self.following), index

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
        largest = self.positions.amax(dim=0) if self.positions.dim() == 3 else self.positions  # [B, L]
        if self.rows is None:
            return largest.amax(dim=1, keepdim=True) + 1
        return 1 + largest.new_zeros(len(self.lengths)).scatter_reduce_(0, self.rows[0], largest[0], "amax")[:, None]

    def to(self, device: torch.device) -> TokenLayout:
        """The same layout with its tensors on a device; does not wait for a copy to an accelerator."""
        to_accelerator = torch.device(device).type != "cpu"
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=to_accelerator))

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> TokenLayout:
        """The same layout with other tensors, on a device for example."""
        tensors = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]


def renumbered(valid: Tensor) -> Tensor:
    """Positions 0..n-1 over the valid tokens of each row [B, L]; 0 on padding."""
    return (valid.long().cumsum(dim=1) - 1).clamp(min=0) * valid
