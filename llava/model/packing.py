"""Which form the rows of a batch take in the decoder: padded to one length, or packed end to end without padding.

Shapes: B rows, L positions of a padded row, S tokens of all rows, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llava.common.own_scores import require_choice, unknown_choice
from llava.compression.layout import TokenLayout
from llava.model.varlen_attention import why_not_packed

PACKING = ("auto", "on", "off")
"""Values of the argument `packing`."""


def packs(layout: TokenLayout, packing: str) -> bool:
    """Whether rows of a padded layout are to be packed.

    Args:
        layout: the rows; only what the host knows of them is looked at.
        packing: `on`, `off`, or `auto`: where there would be padding, because rows differ in length or in what is
            left of them when no visual token is.

    Raises:
        ValueError: for another value.
    """
    match packing:
        case "auto":
            text = {length - visual for length, visual in zip(layout.lengths, layout.visual, strict=True)}
            return any(layout.lengths) and (layout.is_padded or len(text) > 1)
        case "on":
            return any(layout.lengths)
        case "off":
            return False
        case other:
            raise unknown_choice("packing", other, PACKING)


def packing_of_call(
    asked: str | None, config: Any, training: bool, filled: bool, given: Mapping[str, Any] | None = None
) -> str:
    """What a call's `packing` comes to: `on`, `auto` or `off`.

    Args:
        asked: argument of the call; None is `auto` in training and in `generate`, and `off` elsewhere. `auto` does not
            pack where results stand at the decoder's positions.
        config: configuration of the decoder.
        training: whether the model is in training mode.
        filled: whether the call goes on behind a filled cache, whose rows are padded; nothing is packed then.
        given: arguments of the call by name; None where nothing came ready.

    Raises:
        ValueError: if rows are to be packed, or came packed, and cannot be; or `off` is asked of rows that came packed.
    """
    given = given or {}
    plan, prefill, layout = (given.get(name) for name in ("plan", "prefill", "layout"))
    packing = asked or ("auto" if training or prefill is not None or plan is not None else "off")
    require_choice("packing", packing, PACKING)
    if filled:
        return "off"
    ready = [layout, *(made.layout for made in (plan, prefill) if made is not None)]
    came_packed = any(one is not None and one.is_packed for one in ready)
    if packing == "off":
        if came_packed:
            raise ValueError("packing is 'off', but the plan of the batch is packed; plan it with packing 'off', too.")
        return packing
    problem = why_not_packed(config)
    if problem is not None and (packing == "on" or came_packed):
        what = "packing is 'on'" if packing == "on" else "The plan of the batch is packed"
        raise ValueError(f"{what}, but {problem}; give packing 'off', or change that.")
    at_columns = layout is None and (prefill is None or not given.get("output_hidden_states"))
    return packing if problem is None and (packing == "on" or came_packed or at_columns) else "off"


def refuse_to_pack(asked: str | None) -> None:
    """Raise ValueError where packing is asked for (`on`) of text with an attention of its own."""
    if asked == "on":
        raise ValueError(
            "packing is 'on', but the rows already hold packed sequences, or attention_mask is a whole attention "
            "matrix; leave packing out, or give each sequence a row of its own."
        )


def in_rows(layout: TokenLayout) -> tuple[TokenLayout, Tensor]:
    """A packed layout in padded form, and int64 [B, L] the place in the stream of each position.

    Padding takes the row's own last token, so that numbers which are not finite stay in the row that they came up in.
    Does not wait for the device.
    """
    device = layout.valid.device
    column = torch.arange(max(layout.lengths), device=device)  # [L]
    starts, lengths = (
        torch.tensor(counts)[:, None].to(device, non_blocking=True) for counts in (layout.starts, layout.lengths)
    )
    valid = column < lengths  # [B, L]
    place = (starts + torch.minimum(column, (lengths - 1).clamp(min=0))).clamp(max=sum(layout.lengths) - 1)

    def rows(values: Tensor, fill: int) -> Tensor:  # [1, S] -> [B, L], [A, 1, S] -> [A, B, L]
        return values[..., 0, :][..., place].masked_fill(~valid, fill)

    padded = dataclasses.replace(
        layout,
        valid=valid,
        image=rows(layout.image, -1),
        visual_index=rows(layout.visual_index, -1),
        vote=rows(layout.vote, 0),
        positions=rows(layout.positions, 0),
        columns=rows(layout.input_columns(), -1),
        rows=None,
    )
    return padded, place


def in_stream(values: Tensor, layout: TokenLayout) -> Tensor:
    """Values [B, L] of rows as they stand in the stream of a packed layout, [1, S]."""
    return values.flatten()[layout.row_numbers() * values.shape[1] + layout.counted()]
