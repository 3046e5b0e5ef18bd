"""Where every token of a batch goes when image placeholders are replaced by visual tokens: planned on the host.

A plan needs token ids and the number of visual tokens of each image, no device, so a collator's worker can make it.
Shapes: B rows, T columns of the input, L positions after splicing, S text tokens and N visual tokens of the batch.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava.compression.layout import TokenLayout, renumbered
from llava.compression.salience import QueryRole
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.loss import Targets
from llava.model.packing import packs
from llava.model.placeholders import VisualSpan, find_spans
from llava.model.query_roles import default_roles, last_flagged, who_votes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SplicePlan:
    """How to build the decoder's input, and what it is to predict.

    Attributes:
        ids: int64 [S], the text tokens of all rows, end to end; they are embedded.
        source: int64 [B, L], index into the rows of `cat([embedded text (S), visual tokens (N)])`; 0 on padding. As the
            layout, [1, all] where rows are packed.
        layout: layout of the L positions.
        counts: visual tokens of each span, in the order in which their features are given.
        width: T.
        queries: who votes, see `T2VConfig.queries`.
        targets: what each column is to predict; None without labels.
    """

    ids: Tensor
    source: Tensor
    layout: TokenLayout
    counts: tuple[int, ...]
    width: int
    queries: str
    targets: Targets | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> SplicePlan:
        """The plan on a device."""
        accelerated = non_blocking and torch.device(device).type != "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=accelerated))

    def pin_memory(self) -> SplicePlan:
        """The plan in page-locked memory, from which it is copied while the device computes (a data loader asks)."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> SplicePlan:
        return dataclasses.replace(
            self,
            ids=change(self.ids),
            source=change(self.source),
            layout=self.layout.map_tensors(change),
            targets=None if self.targets is None else self.targets.map_tensors(change),
        )

    def packed(self) -> SplicePlan:
        """The same plan with its rows packed; does not wait for the device it is on."""
        layout, index = self.layout.packed()
        return dataclasses.replace(self, layout=layout, source=self.source.flatten()[index][None])

    def require(self, counts: Sequence[int], queries: str) -> None:
        """Raise ValueError where the visual tokens that came, or who is to vote, are not those that were planned."""
        if [count for count in counts if count] != [count for count in self.counts if count] or queries != self.queries:
            raise ValueError(
                f"The plan of the batch is for images of {list(self.counts)} visual tokens and t2v.queries "
                f"{self.queries!r}, but there are {list(counts)} and {queries!r}; give the collator the model's own "
                "compression, or leave plan out."
            )


@dataclass(frozen=True)
class PlanSettings:
    """What a data worker has to know of a model to plan its batches, where media are placeholders in the ids.

    Here every placeholder becomes as many visual tokens; a model whose media differ gives a subclass.

    Attributes:
        tokens_per_image: visual tokens of each image.
        queries: who votes, see `T2VConfig.queries`.
        max_length: positions after which rows are cut off; None cuts none.
        packing: form of the plan's rows, see `llava.model.packing.packs`. Rows that are padded here can still be packed
            when the model runs.
    """

    tokens_per_image: int
    queries: str
    max_length: int | None = None
    packing: str = dataclasses.field(default="off", kw_only=True)

    @property
    def fixed(self) -> int | None:
        """Visual tokens that every placeholder becomes, whatever it stands for; None where they differ."""
        return self.tokens_per_image

    def counts(self, medium: Any) -> list[int]:
        """Visual tokens that each placeholder of a medium becomes, in order.

        Args:
            medium: medium that the model's family prepares, see `llava.data.families.base`.
        """
        return [self.tokens_per_image]

    def plan(self, batch: Mapping[str, Tensor], media: Sequence[Any]) -> SplicePlan:
        """Plan a training batch that is padded on the right.

        Args:
            batch: `input_ids`, `attention_mask`, `labels`, `query_mask`, each [B, T] on the host.
            media: media of the batch in reading order.
        """
        counts = [count for medium in media for count in self.counts(medium)]
        plan = plan_splice(
            batch["input_ids"],
            batch["attention_mask"],
            {IMAGE_TOKEN_INDEX: [VisualSpan(torch.empty(count, 0), 1) for count in counts]},
            labels=batch["labels"],
            query_mask=batch["query_mask"],
            queries=self.queries,
            max_length=self.max_length,
        )
        return plan.packed() if packs(plan.layout, self.packing) else plan


def plan_splice(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    spans: Mapping[int, Sequence[VisualSpan]],
    *,
    labels: Tensor | None = None,
    shift_labels: Tensor | None = None,
    answers: Tensor | None = None,
    query_mask: Tensor | None = None,
    queries: str = "last",
    padding_side: str = "right",
    max_length: int | None = None,
) -> SplicePlan:
    """Plan the batch after splicing.

    Args:
        input_ids: int64 [B, T] on the host.
        attention_mask: [B, T], 0 on padding (either side), or None.
        spans: what each placeholder stands for, in reading order, by its token id.
        labels: int64 [B, T], target ids; `IGNORE_INDEX` where there is none. Those on placeholders do not count.
        shift_labels: int64 [B, T], what each column is to predict; taken instead of `labels`.
        answers: bool [B, T], tokens of given answers, which do not vote; None takes those that have a label.
        query_mask: int64 [B, T], flags of `QueryRole`; None derives them, see `default_roles`.
        queries: which of them vote, see `T2VConfig.queries`.
        padding_side: padding side of the result.
        max_length: longer rows lose their end, and a warning says how many answer tokens went with it.

    Raises:
        ValueError: if the placeholders do not fit the images, or a tensor has another shape than the ids.
    """
    check_shapes(input_ids, attention_mask=attention_mask, query_mask=query_mask)
    check_shapes(input_ids, labels=labels, shift_labels=shift_labels, answers=answers)
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    span, kept = find_spans(input_ids, valid, spans)
    every = [one for held in spans.values() for one in held]
    is_image = span >= 0
    targets = Targets.of(labels, shift_labels)
    if targets is not None:
        targets = targets.without((valid & ~kept) | is_image | (~valid & (shift_labels is None)))
    if answers is None and targets is not None:
        answers = targets.labels() != IGNORE_INDEX
    derived = default_roles(is_image, kept, answers)
    before_answer = derived & int(QueryRole.LAST)
    if query_mask is None:
        query_mask = derived
    elif answers is None:
        before_answer = last_flagged(query_mask, kept, before_answer)
    counts = torch.tensor([len(one.features) for one in every], dtype=torch.long)
    width = kept.long()
    width[is_image] = counts[span[is_image]]
    stream = _Stream.of(width)
    if max_length is not None and int(width.sum(dim=1).max()) > max_length:
        stream, targets = _truncate(stream, width, targets, max_length)
    is_text = kept & ~is_image
    source, slot = _features(stream, span, is_text, counts, every)
    layout, rows = _pad(stream, width, is_image, query_mask, before_answer, queries, padding_side)
    columns = rows(stream.token % input_ids.shape[1] + slot, -1)
    return SplicePlan(
        ids=input_ids[is_text],
        source=rows(source, 0),
        layout=dataclasses.replace(layout, columns=columns),
        counts=tuple(counts.tolist()),
        width=input_ids.shape[1],
        queries=queries,
        targets=targets,
    )


def at_slots(plan: SplicePlan, spans: Sequence[VisualSpan]) -> SplicePlan:
    """The columns of visual tokens, where only the device knows which placeholders of their span they stand at.

    Args:
        plan: plan of the batch, in which these stand at the first of them.
        spans: as they were planned, with their features.
    """
    if all(span.slots is None for span in spans):
        return plan
    columns = plan.layout.input_columns()
    offsets = (columns.new_zeros(len(one.features)) if one.slots is None else one.slots.to(columns) for one in spans)
    slots = torch.cat(list(offsets))  # [N]
    index = (plan.source - len(plan.ids)).clamp(min=0)  # [B, L]
    late = slots.index_select(0, index.flatten()).view(index.shape).masked_fill(~plan.layout.is_visual, 0)
    return dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, columns=columns + late))


def splice_embeddings(text: Tensor, features: Sequence[Tensor], plan: SplicePlan) -> Tensor:
    """Embeddings [B, L, D] ([1, all, D] of a packed plan) of text [S, D] with visual tokens [n, D] of each span.

    Zeros on padding.
    """
    rows = torch.cat([text, *(span.to(text) for span in features)]) if features else text  # [S + N, D]
    embeddings = rows.index_select(0, plan.source.flatten()).view(*plan.source.shape, -1)
    return embeddings.masked_fill(~plan.layout.valid[..., None], 0) if plan.layout.is_padded else embeddings


def splice_added(spans: Sequence[VisualSpan], plan: SplicePlan) -> tuple[Tensor, ...]:
    """What spans add to decoder layers, [B, L, D] for each; zeros on text and padding.

    Raises:
        ValueError: if spans add to different numbers of layers.
    """
    depths = {len(span.added) for span in spans}
    if len(depths) > 1:
        raise ValueError(
            f"Visual spans of one batch add to {sorted(depths)} decoder layers; they must all add to as many."
        )
    index = (plan.source - len(plan.ids)).clamp(min=-1) + 1  # [B, L]
    index = index.masked_fill(~plan.layout.valid, 0)  # 0 is text and padding
    made = []
    for layers in zip(*(span.added for span in spans), strict=True):
        nothing = layers[0].new_zeros(1, layers[0].shape[-1])
        rows = torch.cat([nothing, *layers]).to(index.device)  # [1 + N, D]
        made.append(rows.index_select(0, index.flatten()).view(*index.shape, -1))
    return tuple(made)


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


@dataclass(frozen=True)
class _Stream:
    """The spliced rows laid end to end: for each position its token in [B * T] and its offset within that token."""

    token: Tensor
    offset: Tensor
    row: Tensor
    column: Tensor

    @classmethod
    def of(cls, width: Tensor) -> _Stream:
        """The stream in which each column becomes so many positions, int64 [B, T]."""
        flat = width.flatten()  # [B * T]
        token = torch.repeat_interleave(torch.arange(flat.numel()), flat)  # [S], S the sum of all widths
        start = flat.cumsum(0) - flat  # [B * T]
        row = token // width.shape[1]
        row_start = width.sum(dim=1).cumsum(0) - width.sum(dim=1)  # [B]
        place = torch.arange(token.numel())
        return cls(token, place - start[token], row, place - row_start[row])

    def select(self, keep: Tensor) -> _Stream:
        return _Stream(*(getattr(self, field.name)[keep] for field in dataclasses.fields(self)))


def _truncate(
    stream: _Stream, width: Tensor, targets: Targets | None, max_length: int
) -> tuple[_Stream, Targets | None]:
    """Cut the end of rows that are too long, and say what was lost."""
    keep = stream.column < max_length
    cut = (width > 0).flatten().index_fill_(0, stream.token[keep], False).view(width.shape)
    left = None if targets is None else targets.without(cut)
    lost = 0 if targets is None or left is None else targets.count - left.count
    cut_rows = stream.row[~keep].unique().tolist()
    logger.warning(
        "%d of %d rows are longer than %d tokens after their images are spliced in and lose their end, "
        "%d answer tokens among it (rows %s); raise model_max_length or shorten them.",
        len(cut_rows),
        len(width),
        max_length,
        lost,
        cut_rows,
    )
    return stream.select(keep), left


def _features(
    stream: _Stream, number: Tensor, is_text: Tensor, counts: Tensor, spans: Sequence[VisualSpan]
) -> tuple[Tensor, Tensor]:
    """The row of text and visual tokens that each position of the stream takes, and how far from its first column."""
    text_row = (is_text.flatten().long().cumsum(0) - 1)[stream.token]
    if not spans:
        return text_row, torch.zeros_like(text_row)
    slots = torch.cat([_slots(span) for span in spans])  # [N]
    number = number.flatten()[stream.token]
    visual = number >= 0
    feature = ((counts.cumsum(0) - counts)[number.clamp(min=0)] + stream.offset) * visual
    source = torch.where(visual, int(is_text.sum()) + feature, text_row)
    return source, slots[feature] * visual if len(slots) else feature


def _slots(span: VisualSpan) -> Tensor:
    if span.slots is not None:
        return torch.zeros(len(span.features), dtype=torch.long)  # see `at_slots`
    return torch.arange(len(span.features)).clamp(max=max(span.replaced - 1, 0))


def _pad(
    stream: _Stream,
    width: Tensor,
    is_image: Tensor,
    query_mask: Tensor,
    before_answer: Tensor,
    queries: str,
    padding_side: str,
) -> tuple[TokenLayout, Callable[[Tensor, int], Tensor]]:
    """Bring the stream into rows of equal length and describe every position; also how values come into such rows."""
    visual = is_image.flatten()[stream.token]  # [B, T] -> [S]
    lengths = torch.bincount(stream.row, minlength=len(width))  # [B]
    longest = int(lengths.max())
    if longest == 0:
        raise ValueError("No row holds a token: attention_mask hides all of them, or model_max_length is 0.")
    match padding_side:
        case "right":
            column = stream.column
        case "left":
            column = stream.column + (longest - lengths)[stream.row]
        case other:
            raise ValueError(f"padding_side is {other!r}; it must be right or left.")

    def rows(values: Tensor, fill: int) -> Tensor:
        """Values of the stream as [B, L]."""
        empty = torch.full((len(width), longest), fill, dtype=values.dtype)
        return empty.index_put_((stream.row, column), values)

    number = (is_image.long().cumsum(dim=1) - 1).flatten()[stream.token]  # [S], numbers of images in their rows
    valid = rows(torch.ones_like(visual), 0)  # [B, L], as all that follow
    image = rows(torch.where(visual, number, -1), -1)
    is_visual = image >= 0
    ends_token = stream.offset + 1 == width.flatten()[stream.token]  # [S]
    roles, ends = (rows(flags.flatten()[stream.token] * ends_token, 0) for flags in (query_mask, before_answer))
    vote = who_votes(roles, ends > 0, valid, is_visual, queries)
    counts = tuple(is_visual.sum(dim=1).tolist())
    layout = TokenLayout(
        valid=valid,
        image=image,
        visual_index=torch.where(is_visual, is_visual.long().cumsum(dim=1) - 1, -1),
        vote=vote,
        positions=renumbered(valid),
        lengths=tuple(lengths.tolist()),
        visual=counts,
        entered=counts,
        max_votes=int(vote.sum(dim=1).max()),
        padding_side=padding_side,
    )
    return layout, rows
