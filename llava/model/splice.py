"""Where every token of a batch goes when image placeholders are replaced by visual tokens: planned on the host.

The plan needs only token ids and the number of visual tokens of each image, no device.
Shapes: B rows, T positions before splicing, L after it, M images of the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.compression.config import unknown_choice
from llava.compression.layout import TokenLayout, renumbered
from llava.compression.salience import ROLES_OF_QUERIES, QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplicePlan:
    """How to build the decoder's input.

    Attributes:
        source: int64 [B, L], index into the rows of `cat([text embeddings (B * T), visual tokens])`.
        layout: of the L positions.
    """

    source: Tensor
    layout: TokenLayout

    def to(self, device: torch.device) -> SplicePlan:
        """The plan on a device."""
        return SplicePlan(self.source.to(device, non_blocking=True), self.layout.to(device))


def plan_splice(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    tokens_per_image: Sequence[int],
    *,
    labels: Tensor | None = None,
    answers: Tensor | None = None,
    query_mask: Tensor | None = None,
    queries: str = "last",
    padding_side: str = "right",
    max_length: int | None = None,
) -> SplicePlan:
    """Plan the batch after splicing.

    Args:
        input_ids: int64 [B, T] on the host, with `IMAGE_TOKEN_INDEX` where images go.
        attention_mask: [B, T], 0 on padding (either side), or None.
        tokens_per_image: visual tokens of each placeholder's image, in reading order.
        labels: int64 [B, T], target ids; `IGNORE_INDEX` where there is none.
        answers: bool [B, T], tokens of given answers, which do not vote; None takes those that have a label.
        query_mask: int64 [B, T], flags of `QueryRole`; None derives them, see `default_query_mask`.
        queries: which of them vote, see `T2VConfig.queries`.
        padding_side: of the result.
        max_length: longer rows lose their end, and a warning says how many answer tokens went with it.

    Raises:
        ValueError: if the number of placeholders is not the number of images, or a tensor has another shape than the
            ids.
    """
    check_shapes(input_ids, attention_mask=attention_mask, labels=labels, answers=answers, query_mask=query_mask)
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    is_image = (input_ids == IMAGE_TOKEN_INDEX) & valid
    placeholders = int(is_image.sum())
    if placeholders != len(tokens_per_image):
        raise ValueError(
            f"The batch has {placeholders} image placeholders but {len(tokens_per_image)} images; give one image for "
            "each <image> in the prompt."
        )
    if answers is None and labels is not None:
        answers = labels != IGNORE_INDEX
    derived = default_query_mask(input_ids, valid, answers)
    before_answer = derived & int(QueryRole.LAST)
    if query_mask is None:
        query_mask = derived
    elif answers is None:
        before_answer = _last_flagged(query_mask, valid, before_answer)
    width = valid.long()
    width[is_image] = torch.tensor(tokens_per_image, dtype=torch.long)
    stream = _Stream.of(width, is_image)
    if max_length is not None and int(width.sum(dim=1).max()) > max_length:
        stream = _truncate(stream, width, labels, max_length)
    return _pad(stream, width, is_image, labels, query_mask, before_answer, queries, padding_side)


def splice_embeddings(text: Tensor, features: Tensor | None, plan: SplicePlan) -> Tensor:
    """Embeddings [B, L, D] of text [B, T, D] with visual tokens [N, D] where the plan puts them; zeros on padding."""
    rows = text.flatten(0, 1)
    if features is not None:
        rows = torch.cat([rows, features.to(rows)])
    embeddings = rows.index_select(0, plan.source.flatten()).view(*plan.source.shape, -1)
    return embeddings.masked_fill(~plan.layout.valid[..., None], 0)


def check_shapes(input_ids: Tensor, **others: Tensor | None) -> None:
    """Raise ValueError where something that has one whole number for each token is no such tensor [B, T]."""
    for name, values in others.items():
        if values is None:
            continue
        if not isinstance(values, Tensor) or (values.is_floating_point() and name != "attention_mask"):
            kind = f"of {values.dtype}" if isinstance(values, Tensor) else f"a {type(values).__name__}"
            raise ValueError(f"{name} is {kind}; give a tensor of whole numbers with the shape of input_ids.")
        if values.shape != input_ids.shape:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, but input_ids has {tuple(input_ids.shape)}; give one value "
                "for each token of the prompt and, where one is given, of its answer."
            )


@functools.cache
def warn_without_answers() -> None:
    """Say once that a training step without labels or a query mask lets the last token of each row vote."""
    logger.warning(
        "A model in training mode was given neither labels nor a query_mask, so the last token of each row ranks the "
        "visual tokens, which may be part of the answer (transformers' Trainer keeps labels back for "
        "label_smoothing_factor and compute_loss_func). Pass query_mask, or logits_to_keep with the length of the "
        "answer plus one."
    )


def default_query_mask(input_ids: Tensor, valid: Tensor, answers: Tensor | None) -> Tensor:
    """Voting roles of a batch that came without any: never an answer token, instructions in text only.

    With answers, instructions are all other tokens, and the last token before each answer is LAST; without them
    everything is instruction and the last token of the row is LAST. Padding between two tokens changes nothing.

    Args:
        input_ids: int64 [B, T].
        valid: bool [B, T], False on padding.
        answers: bool [B, T], tokens of given answers; None if there are none.

    Returns:
        int64 [B, T], flags of `QueryRole`.
    """
    text = valid & (input_ids != IMAGE_TOKEN_INDEX)
    following = _following_token(valid)
    if answers is None:
        instruction, last = text, valid & (following < 0)
    else:
        answer = answers & valid
        instruction = text & ~answer
        last = valid & ~answer & (following >= 0) & answer.gather(1, following.clamp(min=0))
    return instruction * int(QueryRole.INSTRUCTION) + last * int(QueryRole.LAST)


@dataclass(frozen=True)
class _Stream:
    """The spliced rows laid end to end: for each position its token in [B * T] and its offset within that token."""

    token: Tensor
    offset: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, width: Tensor, is_image: Tensor) -> _Stream:
        flat = width.flatten()
        token = torch.repeat_interleave(torch.arange(flat.numel()), flat)
        start = flat.cumsum(0) - flat
        row = token // width.shape[1]
        row_start = width.sum(dim=1).cumsum(0) - width.sum(dim=1)
        place = torch.arange(token.numel())
        return cls(token, place - start[token], row, place - row_start[row])

    def select(self, keep: Tensor) -> _Stream:
        return _Stream(*(getattr(self, field.name)[keep] for field in dataclasses.fields(self)))


def _truncate(stream: _Stream, width: Tensor, labels: Tensor | None, max_length: int) -> _Stream:
    """Cut the end of rows that are too long, and say what was lost."""
    keep = stream.column < max_length
    cut_rows = stream.row[~keep].unique().tolist()
    lost = 0 if labels is None else int((labels.flatten()[stream.token[~keep]] != IGNORE_INDEX).sum())
    logger.warning(
        "%d of %d rows are longer than %d tokens after their images are spliced in and lose their end, "
        "%d answer tokens among it (rows %s); raise model_max_length or shorten them.",
        len(cut_rows), len(width), max_length, lost, cut_rows,
    )  # fmt: skip
    return stream.select(keep)


def _pad(
    stream: _Stream,
    width: Tensor,
    is_image: Tensor,
    labels: Tensor | None,
    query_mask: Tensor,
    before_answer: Tensor,
    queries: str,
    padding_side: str,
) -> SplicePlan:
    """Bring the stream into rows of equal length and describe every position."""
    batch, before = width.shape
    visual = is_image.flatten()[stream.token]
    lengths = torch.bincount(stream.row, minlength=batch)
    longest = int(lengths.max())
    column = stream.column + ((longest - lengths)[stream.row] if padding_side == "left" else 0)

    def rows(values: Tensor, fill: int) -> Tensor:
        return torch.full((batch, longest), fill, dtype=values.dtype).index_put_((stream.row, column), values)

    feature_start = batch * before + (width * is_image).flatten().cumsum(0) - width.flatten()
    source = torch.where(visual, feature_start[stream.token] + stream.offset, stream.token)
    number = (is_image.long().cumsum(dim=1) - 1).flatten()[stream.token]
    valid = rows(torch.ones_like(visual), 0)
    image = rows(torch.where(visual, number, -1), -1)
    is_visual = image >= 0
    visual_index = torch.where(is_visual, is_visual.long().cumsum(dim=1) - 1, -1)
    ends_token = stream.offset + 1 == width.flatten()[stream.token]
    roles, ends = (rows(flags.flatten()[stream.token] * ends_token, 0) for flags in (query_mask, before_answer))
    vote = _votes(roles, ends > 0, valid, is_visual, queries)
    targets = None if labels is None else rows(_targets(labels, stream, visual), IGNORE_INDEX)
    counts = tuple(is_visual.sum(dim=1).tolist())
    layout = TokenLayout(
        valid=valid,
        image=image,
        visual_index=visual_index,
        vote=vote,
        positions=renumbered(valid),
        lengths=tuple(lengths.tolist()),
        visual=counts,
        entered=counts,
        max_votes=int(vote.sum(dim=1).max()),
        max_supervised=0 if targets is None else int((targets[:, 1:] != IGNORE_INDEX).sum()),
        padding_side=padding_side,
        labels=targets,
        columns=rows(stream.token % before, -1),
    )
    return SplicePlan(rows(source, 0), layout)


def _last_flagged(query_mask: Tensor, valid: Tensor, otherwise: Tensor) -> Tensor:
    """LAST for the last flagged token of each row, int64 [B, T]; `otherwise` in rows without any flag.

    So a mask that lacks the flag which is asked for has the same voter with and without a given answer behind it.
    """
    flagged = (query_mask != 0) & valid
    last = flagged & (flagged.flip(1).long().cumsum(dim=1).flip(1) == 1)
    return torch.where(last.any(dim=1, keepdim=True), last * int(QueryRole.LAST), otherwise)


def _following_token(valid: Tensor) -> Tensor:
    """int64 [B, T]: column of the next valid token behind each column, -1 where there is none."""
    width = valid.shape[1]
    column = torch.where(valid, torch.arange(width), width)
    nearest = column.flip(1).cummin(dim=1).values.flip(1)  # at or behind each column
    following = torch.cat([nearest[:, 1:], torch.full_like(nearest[:, :1], width)], dim=1)
    return torch.where(following < width, following, -1)


def _targets(labels: Tensor, stream: _Stream, visual: Tensor) -> Tensor:
    return labels.flatten()[stream.token].masked_fill(visual, IGNORE_INDEX)


def _votes(roles: Tensor, before_answer: Tensor, valid: Tensor, is_visual: Tensor, queries: str) -> Tensor:
    """Who votes, bool [B, L]: tokens with the right role behind the first visual token of their row.

    A row with visual tokens and no such token falls back to LAST tokens, then to those that stand before an answer,
    then to its last token: never nobody, and an answer only in a row of which nothing else is left.
    """
    if queries not in ROLES_OF_QUERIES:
        raise unknown_choice("t2v.queries", queries, tuple(ROLES_OF_QUERIES))
    behind_image = is_visual.long().cumsum(dim=1) > 0
    vote = (roles & int(ROLES_OF_QUERIES[queries]) > 0) & behind_image
    last = (roles & int(QueryRole.LAST) > 0) & behind_image
    end = valid & ~_next(valid, False)
    for fallback in (last, before_answer & behind_image, end):
        vote = torch.where(vote.any(dim=1, keepdim=True), vote, fallback & is_visual.any(dim=1, keepdim=True))
    return vote


def _next(values: Tensor, fill: bool) -> Tensor:
    """The value of the following position, `fill` behind the last one."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], fill)], dim=1)
