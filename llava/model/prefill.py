"""A prompt of a compressed model, ready for its decoder.

Shapes: B rows, T columns as the processor made them, L positions after splicing, A axes of positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava.compression.layout import TokenLayout
from llava.model.placeholders import Contracted


@dataclass(frozen=True)
class Prefill:
    """A prompt ready for the decoder.

    Attributes:
        embeddings: [B, L, D].
        layout: of the L positions; its `columns` count those of the prompt as the processor made it.
        width: how many columns that prompt has.
        of_embeddings: whether it came as embeddings.
    """

    embeddings: Tensor
    layout: TokenLayout
    width: int
    of_embeddings: bool = False

    def repeat_interleave(self, repeats: int) -> Prefill:
        """Each row `repeats` times, for beams."""
        embeddings = self.embeddings.repeat_interleave(repeats, dim=0)
        return Prefill(embeddings, self.layout.repeat_interleave(repeats), self.width, self.of_embeddings)


def at_stock_positions(
    layout: TokenLayout, source: Tensor, positions: Tensor, text: Contracted, attention_mask: Tensor | None
) -> TokenLayout:
    """Give every token the position, on every axis, that it has in the uncompressed prompt.

    Args:
        layout, source: of the plan, L positions.
        positions: int64 [A, B, T] of the uncompressed prompt.
        text: the contracted prompt.
        attention_mask: [B, T] of the uncompressed prompt.
    """
    positions = positions.cpu()
    # New text goes on behind the last token, as in the stock model: a long video reaches further in time than the text.
    last = torch.full((positions.shape[1],), positions.shape[2] - 1)
    if attention_mask is not None:
        last = attention_mask.cpu().long().cumsum(dim=1).argmax(dim=1)
    behind = positions[:, torch.arange(len(last)), last].amax(dim=0)[:, None] + 1
    columns = text.columns.expand(len(positions), -1, -1)
    pieces = [positions.gather(2, columns).flatten(1)]
    for (row, column), span in zip(text.starts, text.spans, strict=True):
        slots = torch.arange(len(span.features)) if span.slots is None else span.slots.cpu()
        pieces.append(positions[:, row, column + slots])
    placed = torch.cat(pieces, dim=1)[:, source].masked_fill(~layout.valid, 0)
    placed = placed[0] if len(placed) == 1 else placed
    return replace(layout.at_positions(placed), following=behind)
