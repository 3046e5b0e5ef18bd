"""The next-token loss, with the head applied to supervised positions only.

Shapes: B rows, L positions, D width, S supervised positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llava.compression.layout import TokenLayout
from llava.constants import IGNORE_INDEX


def next_token_loss(
    head: nn.Module,
    hidden_states: Tensor,
    layout: TokenLayout,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross entropy of each token's successor, as transformers computes it, at a fraction of the memory.

    Args:
        head: maps [S, D] to logits [S, V].
        hidden_states: [B, L, D].
        layout: of the L positions. Its labels are used; without them (text that was not spliced) `labels` are.
        labels: int64 [B, L], -100 where there is no target.
        num_items_in_batch: divides the sum of the loss; None takes the mean.

    Returns:
        float32 scalar; 0 (with a graph through the head) where nothing is supervised.
    """
    layout, labels = layout.to(hidden_states.device), labels.to(hidden_states.device)
    most = layout.max_supervised
    if layout.labels is not None:
        labels = layout.labels
    else:
        most = int((labels[:, 1:] != IGNORE_INDEX).sum())
    targets = labels[:, 1:].masked_fill(~layout.valid[:, :-1], IGNORE_INDEX).flatten()
    # Sorting finds the supervised positions without asking the device how many there are.
    index = torch.argsort((targets == IGNORE_INDEX).int(), stable=True)[: max(1, most)]
    logits = head(hidden_states[:, :-1].flatten(0, 1).index_select(0, index)).float()
    total = F.cross_entropy(logits, targets.index_select(0, index), ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)
