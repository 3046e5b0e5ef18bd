"""Who may vote on visual tokens: roles of a batch that came without any, and the voters that they make.

On the host. Shapes: B rows, T columns of the input, L positions after splicing.
"""

from __future__ import annotations

import functools
import logging

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.common.own_scores import unknown_choice
from llava.compression.salience import ROLES_OF_QUERIES, QueryRole

logger = logging.getLogger(__name__)


def default_roles(is_image: Tensor, valid: Tensor, answers: Tensor | None) -> Tensor:
    """Voting roles of a batch that came without any: never an answer token, instructions in text only.

    With answers, instructions are all other tokens, and the last token before each answer is LAST; without them
    everything is instruction and the last token of the row is LAST. Padding between two tokens changes nothing.

    Args:
        is_image: bool [B, T], placeholders.
        valid: bool [B, T], False on padding.
        answers: bool [B, T], tokens of given answers; None if there are none.

    Returns:
        int64 [B, T], flags of `QueryRole`.
    """
    text = valid & ~is_image
    following = _following_token(valid)
    if answers is None:
        instruction, last = text, valid & (following < 0)
    else:
        answer = answers & valid
        instruction = text & ~answer
        last = valid & ~answer & (following >= 0) & answer.gather(1, following.clamp(min=0))
    return instruction * int(QueryRole.INSTRUCTION) + last * int(QueryRole.LAST)


def last_flagged(query_mask: Tensor, valid: Tensor, otherwise: Tensor) -> Tensor:
    """LAST for the last flagged token of each row, int64 [B, T]; `otherwise` in rows without any flag.

    So a mask that lacks the flag which is asked for has the same voter with and without a given answer behind it.
    """
    flagged = (query_mask != 0) & valid
    last = flagged & (flagged.flip(1).long().cumsum(dim=1).flip(1) == 1)  # [B, T]
    return torch.where(last.any(dim=1, keepdim=True), last * int(QueryRole.LAST), otherwise)


def _following_token(valid: Tensor) -> Tensor:
    """int64 [B, T]: column of the next valid token behind each column, -1 where there is none."""
    width = valid.shape[1]
    column = torch.where(valid, torch.arange(width), width)  # [B, T]
    nearest = column.flip(1).cummin(dim=1).values.flip(1)  # at or behind each column
    following = F.pad(nearest[:, 1:], (0, 1), value=width)
    return torch.where(following < width, following, -1)


def who_votes(roles: Tensor, before_answer: Tensor, valid: Tensor, is_visual: Tensor, queries: str) -> Tensor:
    """Who votes, bool [B, L]: tokens with the right role behind the first visual token of their row.

    A row with visual tokens and no such token falls back to LAST tokens, then to those that stand before an answer,
    then to its last token: never nobody, and an answer only in a row of which nothing else is left.
    """
    if queries not in ROLES_OF_QUERIES:
        raise unknown_choice("t2v.queries", queries, tuple(ROLES_OF_QUERIES))
    behind_image = is_visual.long().cumsum(dim=1) > 0  # [B, L]
    vote = (roles & int(ROLES_OF_QUERIES[queries]) > 0) & behind_image
    last = (roles & int(QueryRole.LAST) > 0) & behind_image
    end = valid & ~F.pad(valid[:, 1:], (0, 1), value=False)
    for fallback in (last, before_answer & behind_image, end):
        vote = torch.where(vote.any(dim=1, keepdim=True), vote, fallback & is_visual.any(dim=1, keepdim=True))
    return vote


@functools.cache
def warn_without_answers() -> None:
    """Say once that a training step without labels or a query mask lets the last token of each row vote."""
    logger.warning(
        "A model in training mode was given neither labels nor a query_mask, so the last token of each row ranks the "
        "visual tokens, which may be part of the answer (transformers' Trainer keeps labels back for "
        "label_smoothing_factor and compute_loss_func). Pass query_mask, or logits_to_keep with the length of the "
        "answer plus one."
    )


@functools.cache
def warn_without_query_mask() -> None:
    """Say once that salient tokens were to vote, but nothing says which they are."""
    logger.warning(
        "t2v.queries is 'salient', but no query_mask says which tokens are: the last one votes alone. Make the prompt "
        "with llava.data.tokenization.encode_prompt and pass its query_mask."
    )
