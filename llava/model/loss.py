"""The next-token loss, with the head applied to supervised positions only.

Shapes: B rows, T columns of the input, L positions behind the last drop ([1, all] for [B, L] where the layout is
packed), D width, S supervised positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.compression.layout import TokenLayout
from llava.constants import IGNORE_INDEX
from llava.model.columns import labels_of, own_columns, survivor_index
from llava.model.head_loss import SummedLoss, summed_cross_entropy


@dataclass(frozen=True)
class Targets:
    """What a batch is to predict; made on the host, apart from the layout of its tokens.

    Attributes:
        shifted: int64 [B, T], what each column of the input is to predict, -100 where nothing.
        count: number of the columns with a target, known on the host.
    """

    shifted: Tensor
    count: int

    @classmethod
    def of(cls, labels: Tensor | None, shift_labels: Tensor | None) -> Targets | None:
        """From labels as callers give them; waits for the device they are on.

        Args:
            labels: int64 [B, T], -100 where there is no target.
            shift_labels: int64 [B, T], what each column is to predict, -100 where nothing; taken instead of `labels`.

        Returns:
            None without labels.
        """
        if shift_labels is None and labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        return None if shift_labels is None else cls(shift_labels.long(), int((shift_labels != IGNORE_INDEX).sum()))

    def without(self, columns: Tensor) -> Targets:
        """The same, but some columns, bool [B, T], are nobody's target: placeholders, padding, what was cut off."""
        predicted = F.pad(columns[:, 1:], (0, 1), value=False).to(self.shifted.device)
        shifted = self.shifted.masked_fill(predicted, IGNORE_INDEX)
        return Targets(shifted, int((shifted != IGNORE_INDEX).sum()))

    def labels(self) -> Tensor:
        """int64 [B, T]: the target that each column itself is."""
        return labels_of(self.shifted)

    def share_of(self, num_items_in_batch: Tensor | int | None) -> Tensor | float:
        """Which part of a step's targets these are: by it a mean of a batch counts, so that means add up to one mean.

        Args:
            num_items_in_batch: targets of the whole (accumulated) batch; None for this batch alone.
        """
        if num_items_in_batch is None:
            return 1.0
        if isinstance(num_items_in_batch, Tensor):
            return self.count / num_items_in_batch.clamp(min=1)
        return self.count / max(num_items_in_batch, 1)

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The same targets with another tensor, on a device for example."""
        return dataclasses.replace(self, shifted=change(self.shifted))


def labels_at(layout: TokenLayout, labels: Tensor) -> Tensor:
    """Labels [B, T] of the input's columns at the positions of a layout, int64 [B, L]; -100 on padding and images."""
    columns = layout.input_columns()
    place = layout.row_numbers() * labels.shape[1] + columns.clamp(min=0)  # [B, L] into the B * T labels
    taken = labels.to(columns.device).flatten()[place]
    return taken.masked_fill((columns < 0) | layout.is_visual, IGNORE_INDEX)


def next_token_loss(
    head: nn.Module,
    hidden_states: Tensor,
    layout: TokenLayout,
    targets: Targets,
    num_items_in_batch: Tensor | int | None = None,
    summed_loss: SummedLoss = summed_cross_entropy,
) -> Tensor:
    """Cross entropy of what follows each column, as transformers computes it, at a fraction of the memory.

    Args:
        head: maps [S, D] to logits [S, V].
        hidden_states: [B, L, D].
        layout: layout of the L positions.
        targets: targets of the T columns.
        num_items_in_batch: divides the sum of the loss; None takes the mean.
        summed_loss: from the head, states [S, D] and labels [S] to the sum of the cross entropies.

    Returns:
        float32 scalar; 0 (with a graph through the head) where nothing is supervised.
    """
    layout = layout.to(hidden_states.device)
    shifted = targets.shifted.to(hidden_states.device, non_blocking=True)
    width = shifted.shape[1]
    index = survivor_index(layout, width)  # [B, T]
    number = torch.arange(1, width + 1, device=index.device)
    last = (own_columns(layout, width) * number).amax(dim=1, keepdim=True)  # 1-based; behind it is padding, or cut off
    outside = (index < 0) | (number > last)
    shifted_labels = shifted.masked_fill(outside, IGNORE_INDEX).flatten()  # [B * T]
    positions = index.clamp(min=0).flatten()  # [B * T] into the B * L positions
    # Sorting finds the supervised columns without asking the device how many there are.
    chosen = torch.argsort((shifted_labels == IGNORE_INDEX).int(), stable=True)[: max(1, targets.count)]  # [S]
    states = hidden_states.flatten(0, 1).index_select(0, positions.index_select(0, chosen))  # [S, D]
    total = summed_loss(head, states, shifted_labels.index_select(0, chosen))
    if num_items_in_batch is None:
        num_items_in_batch = (shifted_labels != IGNORE_INDEX).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
