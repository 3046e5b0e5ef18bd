"""The decoder's input for a prompt: embeddings, layout and targets.

Shapes: B rows, T columns of the input, L positions after splicing, A axes of positions, D width.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.compression.layout import TokenLayout
from llava.model.host_inputs import to_device
from llava.model.loss import Targets
from llava.model.splice import SplicePlan


@dataclass(frozen=True)
class Prefill:
    """A prompt ready for the decoder.

    Attributes:
        embeddings: [B, L, D].
        layout: layout of the L positions; its `columns` count those of the input.
        width: T, how many columns results stand at; None leaves them at the decoder's positions.
        targets: what the columns are to predict, where labels were given.
        of_embeddings: whether the prompt reaches `forward` as embeddings, too.
        added: [B, L, D] each, added to the hidden states behind decoder layer 0, 1, ...
    """

    embeddings: Tensor
    layout: TokenLayout
    width: int | None
    targets: Targets | None = None
    of_embeddings: bool = False
    added: tuple[Tensor, ...] = ()

    def repeat_interleave(self, repeats: int) -> Prefill:
        """Each row `repeats` times, for beams."""
        embeddings, *added = (rows.repeat_interleave(repeats, dim=0) for rows in (self.embeddings, *self.added))
        layout = self.layout.repeat_interleave(repeats)  # [B, L] -> [B * repeats, L]
        return dataclasses.replace(self, embeddings=embeddings, layout=layout, added=tuple(added))


def at_stock_positions(plan: SplicePlan, positions: Tensor, attention_mask: Tensor | None) -> SplicePlan:
    """Give every token the position, on every axis, that it has in the uncompressed prompt.

    Args:
        plan: plan of the prompt.
        positions: int64 [A, B, T] of the uncompressed prompt, on the host or where the plan is.
        attention_mask: [B, T] of the uncompressed prompt, where the positions are.
    """
    layout, device = plan.layout, plan.source.device
    # New text goes on behind the last token, as in the stock model: a long video reaches further in time than the text.
    last = torch.full(positions.shape[1:2], positions.shape[2] - 1, device=positions.device)
    if attention_mask is not None:
        last = to_device(attention_mask, positions.device).long().cumsum(dim=1).argmax(dim=1)
    at_last = last[None, :, None].expand(len(positions), -1, 1)  # [A, B, 1]
    behind = to_device(positions.gather(2, at_last).amax(dim=0) + 1, device)  # [B, 1]
    columns = layout.input_columns().clamp(min=0).expand(len(positions), -1, -1)
    placed = to_device(positions, device).gather(2, columns).masked_fill(~layout.valid, 0)  # [A, B, L]
    placed = placed[0] if len(placed) == 1 else placed
    return dataclasses.replace(plan, layout=dataclasses.replace(layout.at_positions(placed), following=behind))


def padding_side_of(attention_mask: Tensor | None) -> str:
    """Left if any row of a mask [B, T] starts with padding; waits for the device it is on."""
    return "left" if attention_mask is not None and bool((attention_mask[:, 0] == 0).any()) else "right"
