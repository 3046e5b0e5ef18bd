"""Results at the columns of the caller's input, although fewer (or, for LLaVA's one `<image>`, more) tokens were run.

Text always survives, so each text token has its own logits and hidden state. A column whose token was dropped, merged
or is padding repeats the nearest token before it that survived: what it predicts is then what the model predicts there.
A column with nothing before it (padding in front) holds zeros.

Shapes: B rows, T columns of the input, L' positions after the last drop, D width, V vocabulary, K columns kept; in the
packed form of a layout [1, S'] stands for [B, L'].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import slice_logits_to_keep

from llava.compression.layout import TokenLayout
from llava.constants import IGNORE_INDEX


def survivor_index(layout: TokenLayout, width: int) -> Tensor:
    """The position of the last token at or before each column of the input.

    Args:
        layout: layout of the L' positions.
        width: T.

    Returns:
        int64 [B, T] into the B * L' positions of all rows, -1 where there is none; does not wait for the device.
    """
    slot = _slots(layout, width)
    at = slot.new_full((len(layout.lengths), width + 1), -1)  # column -1 (padding) is written to slot 0
    place = torch.arange(slot.numel(), device=slot.device)
    at.view(-1).scatter_reduce_(0, slot.flatten(), place, reduce="amax")
    return at[:, 1:].cummax(dim=1).values


def own_columns(layout: TokenLayout, width: int) -> Tensor:
    """bool [B, T]: columns of the input that at least one token of the layout belongs to."""
    slot = _slots(layout, width)
    found = torch.zeros(len(layout.lengths), width + 1, dtype=torch.bool, device=slot.device)
    found.view(-1).scatter_(0, slot.flatten(), True)
    return found[:, 1:]


def _slots(layout: TokenLayout, width: int) -> Tensor:
    """int64 [B, L']: where each position's column stands in a table [B, 1 + T], whose first column is for padding."""
    return layout.row_numbers() * (width + 1) + layout.input_columns() + 1


def at_columns(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, L', D] at the columns [B, K] of a `survivor_index`: [B, K, D], zeros where it is -1."""
    index = index.to(values.device)
    taken = values.flatten(0, 1).index_select(0, index.clamp(min=0).flatten()).unflatten(0, index.shape)
    return taken.masked_fill(index[..., None] < 0, 0)


def logits_at_columns(
    head: nn.Module, hidden_states: Tensor, index: Tensor, logits_to_keep: int | Tensor = 0
) -> Tensor:
    """Logits of the columns that are asked for, as transformers' `logits_to_keep` counts them.

    Args:
        head: maps states of width D to logits [..., V].
        hidden_states: [B, L', D].
        index: `survivor_index` of all T columns.
        logits_to_keep: a number of last columns (0 for all), columns [K] or [B, K], or a bool mask [B, T].

    Returns:
        [B, K, V]; of a bool mask [true columns, V].
    """
    if isinstance(logits_to_keep, int) and logits_to_keep == 0:
        return at_columns(head(hidden_states), index)  # fewer rows through the head than there are columns
    if isinstance(logits_to_keep, Tensor) and logits_to_keep.dtype == torch.bool and logits_to_keep.dim() == 2:
        return head(slice_logits_to_keep(at_columns(hidden_states, index), logits_to_keep))
    kept = slice_logits_to_keep(index[..., None], logits_to_keep).squeeze(-1)  # [B, K]
    return head(at_columns(hidden_states, kept))


def hidden_states_at_columns(
    hidden_states: Sequence[Tensor | None], layouts: Sequence[TokenLayout], cuts: Sequence[int], width: int
) -> tuple[Tensor | None, ...]:
    """What `output_hidden_states` collects, each [B, L of its stage, D], at the columns of the input.

    Args:
        hidden_states: the embeddings, then the output of each layer; None for those that were not asked for.
        layouts: layouts of each stage.
        cuts: after how many layers each drop takes place.
        width: T.

    Returns:
        as many, [B, T, D] each.
    """
    indices = [survivor_index(layout, width) for layout in layouts]
    return tuple(
        None if states is None else at_columns(states, indices[sum(cut < layers for cut in cuts)])
        for layers, states in enumerate(hidden_states)  # after so many layers; in front of a drop that follows them
    )


def given_answer(
    input_ids: Tensor, attention_mask: Tensor | None, is_visual: Tensor, logits_to_keep: Any
) -> Tensor | None:
    """Which tokens are a given answer where only the logits that predict it are asked for.

    Who keeps the last K + 1 logits scores the K last tokens; those may not vote on visual tokens, as they could not
    while they were generated. A row that shows an image among its last K tokens asks for something else.

    Args:
        input_ids: int64 [B, T].
        attention_mask: [B, T] or None.
        is_visual: bool [B, T], placeholders of images and videos.
        logits_to_keep: argument of `forward`: an int, or the last columns [K + 1] in order.

    Returns:
        bool [B, T], or None where nothing says what the answer is.
    """
    width = input_ids.shape[1]
    kept = _kept_tail(logits_to_keep, width)
    if kept < 2 or kept >= width:
        return None
    tail = torch.arange(width, device=input_ids.device) > width - kept
    answer = tail.expand_as(input_ids)
    if attention_mask is not None:
        answer = answer & attention_mask.bool().to(answer.device)
    return answer & ~(is_visual & tail).any(dim=1, keepdim=True)


def _kept_tail(logits_to_keep: Any, width: int) -> int:
    """How many last columns are asked for; 0 if others are, or all."""
    if isinstance(logits_to_keep, list | tuple):
        logits_to_keep = torch.as_tensor(logits_to_keep)
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1 or not len(logits_to_keep) or logits_to_keep.dtype == torch.bool:
            return 0
        columns = [column % width for column in logits_to_keep.tolist()]
        return len(columns) if columns == list(range(width - len(columns), width)) else 0
    return 0 if logits_to_keep is None else int(logits_to_keep)


def labels_of(shift_labels: Tensor) -> Tensor:
    """The labels int64 [B, T] that `shift_labels` were made from: what a column is to predict stands one column on."""
    return torch.nn.functional.pad(shift_labels[:, :-1], (1, 0), value=IGNORE_INDEX)
