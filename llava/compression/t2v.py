"""Text-to-vision dropping: score visual tokens by the attention text pays them, choose, gather (paper section 3.2).

Shapes: B rows, L positions ([1, S] for [B, L] in the packed form of a layout), V voting tokens, H query heads, G key
heads, d head width, D width. Nothing here waits for the device: how many tokens stay is known on the host.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from llava.common.own_scores import require_choice, scored_by_own
from llava.compression.config import T2V_POSITIONS, T2V_SCORES, T2VConfig
from llava.compression.layout import TokenLayout
from llava.compression.selection import even_spread, seeded_noise, without_autocast

_MAX_ATTENTION_ELEMENTS = 2**28


def keep_counts(layout: TokenLayout, config: T2VConfig, stage: int) -> tuple[int, ...]:
    """Visual tokens each row keeps at `stage` (0-based): a share of what entered the decoder, floored.

    A row that holds nothing but an image keeps at least one token, so that there is something to answer from.
    """
    rows = zip(layout.lengths, layout.visual, layout.entered, strict=True)
    return tuple(
        max(int(0 < present == length), min(present, config.kept(stage, entered))) for length, present, entered in rows
    )


def voting_positions(layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Where the voters of each row stand.

    Returns:
        int64 [B, V] positions (places of the stream in the packed form), and bool [B, V] whether the entry is a voter
        (rows may have fewer than V).
    """
    count = max(1, layout.max_votes)
    if layout.rows is not None:
        order = torch.argsort(2 * layout.rows[0] + ~layout.vote[0], stable=True)  # [S], row by row, voters first
        place = [[min(start + one, len(order) - 1) for one in range(count)] for start in layout.starts]
        index = order[torch.tensor(place).to(order.device, non_blocking=True)]  # [B, V]
        own = layout.rows[0][index] == torch.arange(len(index), device=order.device)[:, None]
        return index, layout.vote[0][index] & own
    index = torch.argsort((~layout.vote).int(), dim=1, stable=True)[:, :count]  # [B, V], voters first
    return index, layout.vote.gather(1, index)


def attention_scores(
    queries: Tensor, keys: Tensor, layout: TokenLayout, voters: Tensor, is_voter: Tensor, scaling: float
) -> Tensor:
    """Attention each position receives from the voters: mean over heads, then over the voters of its row.

    Causal softmax over all keys of the row (system prompt, visual tokens, text), in float32.

    Args:
        queries: [B, H, V, d] of the voting tokens, rotated to their positions.
        keys: [B, G, L, d] ([1, G, S, d]) of every token, rotated; H is a multiple of G (grouped-query attention).
        layout: describes the L positions.
        voters, is_voter: what `voting_positions` returns.
        scaling: factor of the dot product, usually d ** -0.5.

    Returns:
        float32 [B, L]; 0 everywhere in a row without voters.
    """
    if not layout.is_packed:
        return _scores(queries, keys, layout.valid, voters, is_voter, scaling)
    found = []
    for row, (first, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        own, part, at = slice(row, row + 1), slice(first, first + length), voters[row : row + 1] - first
        found.append(_scores(queries[own], keys[:, :, part], layout.valid[:, part], at, is_voter[own], scaling))
    return torch.cat(found, dim=1)


def _scores(queries: Tensor, keys: Tensor, valid: Tensor, voters: Tensor, is_voter: Tensor, scaling: float) -> Tensor:
    """`attention_scores` of rows of equal length."""
    batch, heads, count, _ = queries.shape
    chunk = max(1, _MAX_ATTENTION_ELEMENTS // max(1, batch * heads * keys.shape[2]))
    keys = keys.float()
    column = torch.arange(keys.shape[2], device=keys.device)
    votes = is_voter.float()
    votes = votes / votes.sum(dim=1, keepdim=True).clamp(min=1)  # [B, V], shares of the mean
    scores = torch.zeros(valid.shape, device=keys.device)  # [B, L]
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        visible = valid[:, None, :] & (column <= voters[:, part, None])  # [B, V, L]
        with without_autocast(keys.device):
            received = _attention(queries[:, :, part].float(), keys, visible, scaling).mean(dim=1)  # [B, V, L]
        scores += (votes[:, part, None] * received).sum(dim=1)
    return scores


def _attention(queries: Tensor, keys: Tensor, visible: Tensor, scaling: float) -> Tensor:
    """Attention [B, H, V, L] of queries [B, H, V, d] on keys [B, G, L, d], without repeating keys over heads."""
    batch, heads, count, width = queries.shape
    groups = keys.shape[1]
    folded = queries.reshape(batch, groups, heads // groups * count, width)  # [B, G, H / G * V, d]
    logits = (folded @ keys.transpose(2, 3) * scaling).view(batch, heads, count, -1)  # [B, H, V, L]
    hidden = torch.finfo(logits.dtype).min
    return logits.masked_fill(~visible[:, None], hidden).softmax(dim=-1)


def control_scores(layout: TokenLayout, config: T2VConfig, stage: int, hidden_states: Tensor | None = None) -> Tensor:
    """Scores [B, L] that need no layer: the controls `random` and `uniform`, and those of other packages.

    Args:
        layout: describes the L positions.
        config: names the score.
        stage: number of the drop (0-based).
        hidden_states: [B, L, D] in front of it, for scores of other packages.

    Raises:
        ValueError: if `config.score` is another one.
    """
    index = layout.visual_index.clamp(min=0)
    match config.score:
        case "random":
            return seeded_noise(index, config.seed + 1 + stage)
        case "uniform":
            return even_spread(index)
        case other:
            return scored_by_own("t2v", other, T2V_SCORES[1:], index.shape, hidden_states, layout, config, stage)


def choose_visual_tokens(scores: Tensor, layout: TokenLayout, counts: tuple[int, ...]) -> Tensor:
    """Mark what stays: all text, and the `counts` best visual tokens of each row; ties go to the earlier token.

    Args:
        scores: [B, L], looked at on visual tokens only.
        layout: describes the L positions.
        counts: visual tokens to keep in each row.

    Returns:
        bool [B, L], False on padding.
    """
    masked = scores.float().masked_fill(~layout.is_visual, -torch.inf)  # [B, L]
    order = masked.sort(dim=1, descending=True, stable=True).indices  # [B, L], columns by falling score
    if layout.rows is not None:  # [1, S], the same row by row
        order = order.gather(1, layout.rows.gather(1, order).argsort(dim=1, stable=True))
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)  # [B, L], place of each column in that order
    chosen = rank < layout.each([start + count for start, count in zip(layout.starts, counts, strict=True)])
    return torch.where(layout.is_visual, chosen, layout.valid)


def gather_kept(
    hidden_states: Tensor, layout: TokenLayout, keep: Tensor, counts: tuple[int, ...], positions: str = "renumber"
) -> tuple[Tensor, TokenLayout]:
    """Gather the kept tokens of each row, in order: hidden states and their layout, padded anew or packed.

    The vote of a token that is dropped passes to the nearest token kept before it (a caption's only voter is the
    last visual token).

    Args:
        hidden_states: [B, L, D].
        layout: describes the L positions.
        keep: bool [B, L], as `choose_visual_tokens` returns it.
        counts: visual tokens that `keep` marks in each row.
        positions: "renumber" or "original", see `T2VConfig`.

    Returns:
        [B, L', D], zeros on padding, and its layout; L' is the longest row that is left, all rows in the packed form.

    Raises:
        ValueError: if `positions` is neither.
    """
    require_choice("t2v.positions", positions, T2V_POSITIONS)
    lengths = tuple(
        length - present + count for length, present, count in zip(layout.lengths, layout.visual, counts, strict=True)
    )
    packed, left = layout.is_packed, layout.padding_side == "left"
    longest = sum(lengths) if packed else max(lengths)
    order = torch.argsort((keep if left else ~keep).int(), dim=1, stable=True)  # [B, L], what is kept last or first
    index = order[:, -longest:] if left else order[:, :longest]  # [B, L'], the column that each position came from
    column = torch.arange(longest, device=keep.device)  # [L']
    padding: Tensor | int = longest - layout.each(lengths) if left else 0  # [B, 1], in front
    valid = keep.new_ones(1, longest) if packed else (column >= padding) & (column < padding + layout.each(lengths))

    def travel(values: Tensor, fill: int) -> Tensor:  # [B, L] or [A, B, L] -> [B, L'] or [A, B, L']
        taken = values.gather(-1, index.expand(*values.shape[:-1], -1))
        return taken if packed else taken.masked_fill(~valid, fill)

    after = dataclasses.replace(
        layout,
        valid=valid,
        image=travel(layout.image, -1),
        visual_index=travel(layout.visual_index, -1),
        lengths=lengths,
        visual=counts,
        columns=travel(layout.input_columns(), -1),
        rows=None if layout.rows is None else travel(layout.rows, -1),
    )
    # Where each token goes; a dropped one, to the last place before it in its row that is kept. [B, L]
    moved = torch.maximum(keep.long().cumsum(dim=1) - 1, layout.each(after.starts)) + padding
    moved = moved.clamp(max=longest - 1)  # a row of padding alone has no place
    vote = torch.zeros(valid.shape, dtype=torch.int32, device=keep.device)  # [B, L']
    vote = vote.scatter_reduce_(1, moved, layout.vote.int(), reduce="amax").bool()
    placed, following = after.counted(), None
    if positions == "original":
        placed, following = travel(layout.positions, 0), layout.next_position()
    hidden_states = layout.take(hidden_states, index)  # [B, L', D]
    if after.is_padded:
        hidden_states = hidden_states.masked_fill(~valid[..., None], 0)
    return hidden_states, dataclasses.replace(after, vote=vote, positions=placed, following=following)
