"""The next-token loss, with the head applied to supervised positions only.

Shapes: B rows, T columns of the input, L positions behind the last drop, D width, S supervised positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.compression.layout import TokenLayout
from llava.constants import IGNORE_INDEX
from llava.model.columns import survivor_index


def next_token_loss(
    head: nn.Module,
    hidden_states: Tensor,
    layout: TokenLayout,
    labels: Tensor | None,
    num_items_in_batch: Tensor | int | None = None,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """Cross entropy of each token's successor, as transformers computes it, at a fraction of the memory.

    Args:
        head: maps [S, D] to logits [S, V].
        hidden_states: [B, L, D].
        layout: of the L positions. Its labels are used; without them (text that was not spliced) `labels` are.
        labels: int64 [B, L], -100 where there is no target; not looked at where `shift_labels` are given.
        num_items_in_batch: divides the sum of the loss; None takes the mean.
        shift_labels: int64 [B, T], what each column of the input is to predict, -100 where nothing; as transformers'
            loss takes them, which does not shift them again.

    Returns:
        float32 scalar; 0 (with a graph through the head) where nothing is supervised.
    """
    layout = layout.to(hidden_states.device)
    if shift_labels is not None:
        positions, targets, most = _of_columns(layout, shift_labels.to(hidden_states.device))
    else:
        assert labels is not None
        positions, targets, most = _of_tokens(layout, labels.to(hidden_states.device))
    # Sorting finds the supervised positions without asking the device how many there are.
    chosen = torch.argsort((targets == IGNORE_INDEX).int(), stable=True)[: max(1, most)]  # [S]
    states = hidden_states.flatten(0, 1).index_select(0, positions.index_select(0, chosen))  # [S, D]
    total = F.cross_entropy(
        head(states).float(), targets.index_select(0, chosen), ignore_index=IGNORE_INDEX, reduction="sum"
    )
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)


def _of_tokens(layout: TokenLayout, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Each token's position in [B * L], the label of the token behind it, and a bound on how many there are."""
    if layout.labels is not None:
        labels, most = layout.labels, layout.max_supervised
    else:
        most = int((labels[:, 1:] != IGNORE_INDEX).sum())
    targets = labels[:, 1:].masked_fill(~layout.valid[:, :-1], IGNORE_INDEX)  # [B, L - 1]
    return _flat(layout)[:, :-1].flatten(), targets.flatten(), most


def _of_columns(layout: TokenLayout, shift_labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """For each column of the input the position in [B * L] that predicts there, what it is to predict, and a bound."""
    width = shift_labels.shape[1]
    index = survivor_index(layout, width)  # [B, T]
    last = layout.input_columns().amax(dim=1, keepdim=True)  # columns behind the last token are padding, or cut off
    outside = (index < 0) | (torch.arange(width, device=index.device) > last)
    targets = shift_labels.masked_fill(outside, IGNORE_INDEX)
    positions = _flat(layout).gather(1, index.clamp(min=0))
    return positions.flatten(), targets.flatten(), int((targets != IGNORE_INDEX).sum())


def _flat(layout: TokenLayout) -> Tensor:
    """int64 [B, L]: place of each position when rows stand end to end."""
    return torch.arange(layout.valid.numel(), device=layout.valid.device).view(layout.valid.shape)
