"""The decoder's input for a prompt: embeddings, layout and targets.

Shapes: B rows, T columns of the input, L positions after splicing ([1, all] for [B, L] where rows are packed), D width,
A axes of positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.layout import TokenLayout
from llava.model.accepted_inputs import is_attention_matrix
from llava.model.columns import own_columns
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

    def packed(self) -> Prefill:
        """The same prompt with its rows packed; does not wait for the device.

        What would be returned at the decoder's positions is returned at those of the padded rows, unless there are
        targets, which stand at the input's columns.
        """
        padded, width = self.layout, self.width
        if width is None and self.targets is None:
            padded, width = dataclasses.replace(padded, columns=None), padded.valid.shape[1]
        layout, index = padded.packed()
        embeddings, *added = (
            values.flatten(0, 1).index_select(0, index)[None] for values in (self.embeddings, *self.added)
        )
        return dataclasses.replace(self, embeddings=embeddings, layout=layout, added=tuple(added), width=width)

    def repeat_interleave(self, repeats: int) -> Prefill:
        """Each row `repeats` times, for beams."""
        embeddings, *added = (rows.repeat_interleave(repeats, dim=0) for rows in (self.embeddings, *self.added))
        return dataclasses.replace(
            self, embeddings=embeddings, layout=repeated_rows(self.layout, repeats), added=tuple(added)
        )


def repeated_rows(layout: TokenLayout, repeats: int) -> TokenLayout:
    """Each row of a padded layout `repeats` times, as beam search and several returned sequences ask."""
    lengths, visual, entered = (
        tuple(count for count in counts for _ in range(repeats))
        for counts in (layout.lengths, layout.visual, layout.entered)
    )
    repeated = layout.map_tensors(lambda tensor: tensor.repeat_interleave(repeats, dim=-2))
    return dataclasses.replace(repeated, lengths=lengths, visual=visual, entered=entered)


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


def of_text(embeddings: Tensor, inputs: Mapping[str, Any], positions: Tensor | None = None) -> Prefill:
    """Text as it stands, position for position.

    Args:
        embeddings: [B, T, D].
        inputs: arguments of `forward`, by name.
        positions: int64 [A, B, T], on several axes, where the stock model has such.
    """
    mask, rows, columns = inputs.get("attention_mask"), *embeddings.shape[:2]
    if mask is None or is_attention_matrix(mask):
        layout = TokenLayout.of_full_text(rows, columns, embeddings.device)
    else:
        layout = TokenLayout.of_text(mask).to(embeddings.device)
    given = inputs.get("position_ids") if positions is None else positions
    if given is not None:
        given = to_device(given, embeddings.device)
        layout = layout.at_positions(given if given.dim() == 2 else given[-3:])
    return Prefill(embeddings, layout, columns, Targets.of(inputs.get("labels"), inputs.get("shift_labels")))


def of_embeddings(inputs: Mapping[str, Any]) -> Prefill:
    """A prompt [B, T, D] that came as embeddings: text alone, or with the layout of what else it holds."""
    embeds, layout = inputs["inputs_embeds"], inputs.get("layout")
    if layout is None:
        return dataclasses.replace(of_text(embeds, inputs), of_embeddings=True)
    targets, shift_labels = Targets.of(inputs.get("labels"), inputs.get("shift_labels")), inputs.get("shift_labels")
    if targets is not None:
        columns, width = layout.input_columns(), targets.shifted.shape[1]
        visual = own_columns(dataclasses.replace(layout, columns=columns.masked_fill(~layout.is_visual, -1)), width)
        targets = targets.without(visual | (~own_columns(layout, width) & (shift_labels is None)))
    return Prefill(embeds, layout, None, targets, of_embeddings=True)
