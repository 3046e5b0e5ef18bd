"""Where a prompt shows images: the placeholders that a tokenizer or processor wrote, and what takes their place.

LLaVA writes one placeholder for an image; processors of transformers as many as the image has tokens without
compression. Either way each image (or group of crops, or frame) is one span with a count of its own.
Shapes: B rows, T columns of the input, n visual tokens of a span, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.compression.v2v import V2VResult


@dataclass(frozen=True)
class VisualSpan:
    """The visual tokens of one image, crop group or video frame, in one piece.

    Attributes:
        features: [n, D] in the language model's width. A plan looks at n alone.
        replaced: placeholders in their place; 0 for an image that was encoded but is not shown.
        slots: int64 [n] which of those placeholders each token stands at; None puts them at the first ones, and those
            that are more at the last.
        added: [n, D] each, added to the hidden states of these tokens behind decoder layer 0, 1, ...
        merged: what V2V made of it, for families that say so; the tokens stand in the order of their patches.
    """

    features: Tensor
    replaced: int
    slots: Tensor | None = None
    added: tuple[Tensor, ...] = ()
    merged: V2VResult | None = None

    def hidden(self) -> VisualSpan:
        """The same image encoded but not shown: no tokens, yet gradients, all zero, that reach the tower."""
        return VisualSpan(self.features[:0], 0, added=tuple(one[:0] for one in self.added))


def hidden_unless_shown(
    spans: Mapping[int, Sequence[VisualSpan]], input_ids: Tensor
) -> Mapping[int, Sequence[VisualSpan]]:
    """Where a batch is text alone, its images are hidden: they came for the tower to run on every rank in every step.

    Args:
        spans: as in `find_spans`, for every placeholder of the family.
        input_ids: int64 [B, T].
    """
    if any(bool((input_ids == token).any()) for token in spans):
        return spans
    return {token: [span.hidden() for span in held] for token, held in spans.items()}


def find_spans(input_ids: Tensor, valid: Tensor, spans: Mapping[int, Sequence[VisualSpan]]) -> tuple[Tensor, Tensor]:
    """Find the placeholders of each span.

    Args:
        input_ids: int64 [B, T] on the host.
        valid: bool [B, T], False on padding.
        spans: what each placeholder stands for, in reading order, by its token id.

    Returns:
        int64 [B, T], at the first placeholder of each span its number (counted through `spans` as they are given),
        -1 elsewhere; and bool [B, T], False on padding and on every further placeholder.

    Raises:
        ValueError: if the placeholders do not fit the images.
    """
    number, kept, done = torch.full_like(input_ids, -1), valid.clone(), 0
    for token, held in spans.items():
        is_placeholder = input_ids == token
        kept &= ~is_placeholder
        for offset, (row, column) in _starts((is_placeholder & valid).nonzero(), held):
            number[row, column] = done + offset
        done += len(held)
    return number, kept | (number >= 0)


def _starts(where: Tensor, spans: Sequence[VisualSpan]) -> list[tuple[int, tuple[int, int]]]:
    """Number and place of the first placeholder of each span, given the places [count, 2] of all placeholders."""
    needed = sum(span.replaced for span in spans)
    if len(where) != needed:
        raise ValueError(
            f"The prompts hold {len(where)} placeholder tokens, but the images or videos that were given stand for "
            f"{needed}; make the inputs with the model's own processor, and give the pixels with the prompt."
        )
    found, first = [], 0
    places = where.tolist()
    for number, span in enumerate(spans):
        if span.replaced == 0:
            continue
        (row, column), (last_row, last_column) = places[first], places[first + span.replaced - 1]
        if row != last_row or last_column - column != span.replaced - 1:
            raise ValueError(
                f"An image or video stands for {span.replaced} placeholders, but those in row {row} are not in one "
                "piece; was the prompt cut off? Raise the processor's max_length."
            )
        found.append((number, (row, column)))
        first += span.replaced
    return found
