"""Results at the columns of the caller's input, although fewer (or, for LLaVA's one `<image>`, more) tokens were run.

Text always survives, so each text token has its own logits and hidden state. A column whose token was dropped, merged
or is padding repeats the nearest token before it that survived: what it predicts is then what the model predicts there.
A column with nothing before it (padding in front) holds zeros.

Shapes: B rows, T columns of the input, L' positions after the last drop, D width, V vocabulary, K columns kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
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
        int64 [B, T] into the L' positions, -1 where there is none; does not wait for the device.
    """
    columns = layout.input_columns()  # [B, L']
    place = torch.arange(columns.shape[1], device=columns.device).expand_as(columns)
    at = columns.new_full((columns.shape[0], width + 1), -1)  # column -1 (padding) is written to slot 0
    at.scatter_reduce_(1, columns + 1, place, reduce="amax")
    return at[:, 1:].cummax(dim=1).values


def own_columns(layout: TokenLayout, width: int) -> Tensor:
    """bool [B, T]: columns of the input that at least one token of the layout belongs to."""
    columns = layout.input_columns()
    found = torch.zeros(columns.shape[0], width + 1, dtype=torch.bool, device=columns.device)
    return found.scatter_(1, columns + 1, True)[:, 1:]


def at_columns(values: Tensor, index: Tensor) -> Tensor:
    """Values [B, L', D] at the columns [B, K] of a `survivor_index`: [B, K, D], zeros where it is -1."""
    index = index.to(values.device)
    taken = values.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, values.shape[-1]))
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
    bounds = [0, *cuts, max(len(hidden_states) - 1, 0)]
    stages = [0] + [stage for stage, (first, last) in enumerate(pairwise(bounds)) for _ in range(first, last)]
    indices = [survivor_index(layout, width) for layout in layouts]
    return tuple(
        None if states is None else at_columns(states, indices[stage])
        for states, stage in zip(hidden_states, stages, strict=True)
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
