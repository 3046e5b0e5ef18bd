"""From the placeholders that a processor of transformers writes to one placeholder for each image.

transformers' processors put as many placeholders into the prompt as an image has tokens without compression. What is
left after V2V is planned by `llava.model.splice`, which wants one placeholder for each image.
Shapes: B rows, T positions as the processor made them, T' positions with one placeholder an image, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image, crop group or video frame.

    Attributes:
        features: [n, D] in the language model's width.
        replaced: placeholders that the processor put in their place.
        slots: int64 [n] which of those placeholders each token stands at; None where that does not matter.
    """

    features: Tensor
    replaced: int
    slots: Tensor | None = None


@dataclass(frozen=True)
class Contracted:
    """A batch with one `IMAGE_TOKEN_INDEX` for each span, on the host, padded on the right.

    Attributes:
        input_ids, attention_mask: int64 [B, T'].
        columns: int64 [B, T'] where each token stood in the batch before.
        spans: in reading order.
        starts: row and column of the first placeholder of each span.
    """

    input_ids: Tensor
    attention_mask: Tensor
    columns: Tensor
    spans: tuple[VisualSpan, ...]
    starts: tuple[tuple[int, int], ...]

    def take(self, values: Tensor | None) -> Tensor | None:
        """Values [B, T] of the tokens that are still there, [B, T'], on the host."""
        return None if values is None else values.cpu().gather(1, self.columns)

    def labels(self, labels: Tensor | None) -> Tensor | None:
        """Labels [B, T] of the tokens that are still there; a visual token is no target, whatever it was labelled."""
        taken = self.take(labels)
        return None if taken is None else taken.masked_fill(self.input_ids == IMAGE_TOKEN_INDEX, IGNORE_INDEX)

    def input_columns(self, source: Tensor, valid: Tensor) -> Tensor:
        """The column of the batch before that each spliced token belongs to, int64 [B, L], -1 on padding.

        The visual tokens of a span stand at their slots; without slots at its first placeholders, those that are more
        at its last.

        Args:
            source: int64 [B, L] of a `SplicePlan` for this batch.
            valid: bool [B, L].
        """
        pieces = [self.columns.flatten()]
        for (_, column), span in zip(self.starts, self.spans, strict=True):
            slots = torch.arange(len(span.features)) if span.slots is None else span.slots.cpu()
            pieces.append(column + slots.clamp(max=max(span.replaced - 1, 0)))
        return torch.cat(pieces)[source].masked_fill(~valid, -1)


def contract(input_ids: Tensor, attention_mask: Tensor | None, spans: Mapping[int, Sequence[VisualSpan]]) -> Contracted:
    """Leave one placeholder of each span and no padding in front.

    Args:
        input_ids: int64 [B, T].
        attention_mask: [B, T], 0 on padding of either side, or None.
        spans: for each placeholder's token id, what it stands for, in reading order.

    Raises:
        ValueError: if the placeholders do not fit the images.
    """
    ids = input_ids.cpu()
    valid = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    keep, found = valid.clone(), []
    for token, held in spans.items():
        where = ((ids == token) & valid).nonzero()
        keep &= ids != token
        found += _starts(where, held)
    found.sort(key=lambda pair: pair[0])
    starts = tuple(start for start, _ in found)
    for row, column in starts:
        keep[row, column] = True
    columns = [row.nonzero().flatten() for row in keep]
    mask = pad_sequence([torch.ones_like(row) for row in columns], batch_first=True)
    padded = pad_sequence(columns, batch_first=True)
    ids = ids.clone()
    for row, column in starts:
        ids[row, column] = IMAGE_TOKEN_INDEX
    return Contracted(ids.gather(1, padded) * mask, mask, padded, tuple(span for _, span in found), starts)


def _starts(where: Tensor, spans: Sequence[VisualSpan]) -> list[tuple[tuple[int, int], VisualSpan]]:
    """Place of the first placeholder of each span, given the places [count, 2] of all of them."""
    needed = sum(span.replaced for span in spans)
    if len(where) != needed:
        raise ValueError(
            f"The prompts hold {len(where)} placeholder tokens, but the images or videos that were given stand for "
            f"{needed}; make the inputs with the model's own processor, and give the pixels with the prompt."
        )
    places, first = [], 0
    for span in spans:
        (row, column), (last_row, last_column) = where[first].tolist(), where[first + span.replaced - 1].tolist()
        if row != last_row or last_column - column != span.replaced - 1:
            raise ValueError(
                f"An image or video stands for {span.replaced} placeholders, but those in row {row} are not in one "
                "piece; was the prompt cut off? Raise the processor's max_length."
            )
        places.append(((row, column), span))
        first += span.replaced
    return places
