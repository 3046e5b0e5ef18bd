"""What may come behind a filled cache: new text, where and under the compression that the cache goes on with.

Shapes: B rows, n new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava.compression.config import CompressionConfig
from llava.compression.layout import renumbered
from llava.model.accepted_inputs import check_counting, check_padding_mask, check_position_shape
from llava.model.staged_cache import StagedCache


def check_behind_cache(
    cache: StagedCache, shape: Sequence[int], attention_mask: Any, position_ids: Any, axes: tuple[int, ...] = ()
) -> None:
    """Look at what was given beside new tokens behind a filled cache; costs nothing where nothing was.

    Args:
        cache: what came before.
        shape: shape of the new tokens, (B, n).
        attention_mask: [B, n], or longer, in which case the last n columns are theirs.
        position_ids: [B, n], or with axes in front.
        axes: how many of those are accepted.

    Raises:
        ValueError: for positions other than the cache's next ones, and for a mask that hides what the cache shows.
    """
    rows, columns = shape
    check_padding_mask(attention_mask, rows, columns, behind_cache=True)
    check_position_shape(position_ids, rows, columns, axes)
    if cache.rows and rows != cache.rows:
        raise ValueError(f"{rows} rows were given, but past_key_values holds {cache.rows}; give as many.")
    if not cache.stages:
        return
    _check_earlier_columns(cache, columns, attention_mask)
    new = None if attention_mask is None else attention_mask[:, -columns:].bool()
    if position_ids is not None:
        _check_next_positions(cache, columns, new, position_ids)


def _check_earlier_columns(cache: StagedCache, columns: int, attention_mask: Tensor | None) -> None:
    """Raise ValueError for a mask over all of a cache that has more or fewer tokens in front than the cache."""
    held = cache.get_seq_length()
    if attention_mask is None or attention_mask.shape[1] != held + columns:
        return
    key_mask = cache.stages[0].key_mask
    count = torch.full((len(attention_mask),), held) if key_mask is None else key_mask.sum(dim=1)
    shown = attention_mask[:, :held].bool().sum(dim=1)
    if not torch.equal(shown, count.to(shown.device)):
        raise ValueError(
            f"attention_mask shows {shown.tolist()} of the tokens in past_key_values, which holds {count.tolist()} "
            "in its rows. What is in the cache cannot be hidden or shown anew: give the mask of the new tokens alone, "
            f"[{len(attention_mask)}, {columns}], or the whole conversation without past_key_values."
        )


def _check_next_positions(cache: StagedCache, columns: int, new: Tensor | None, position_ids: Tensor) -> None:
    """Raise ValueError unless positions are those that the cache gives to new tokens; padding may have any."""
    following = cache.stages[0].next_position.to(position_ids.device)
    new = following.new_ones(len(following), columns).bool() if new is None else new.to(following.device)
    expected = following + renumbered(new)
    given = position_ids
    if position_ids.dim() == 3 and len(position_ids) == 4:  # in front of the rotation's axes stands a counting
        check_counting(position_ids[0], new)
        given = position_ids[1:]
    if bool(((given != expected) & new).any()):
        raise ValueError(
            f"position_ids are {position_ids.tolist()}, but behind past_key_values the new tokens stand at "
            f"{expected.tolist()}: the cache numbers them itself, behind the visual tokens it holds. Leave "
            "position_ids out."
        )


def check_compression_behind_cache(
    cache: StagedCache, given: CompressionConfig | None, configured: CompressionConfig
) -> None:
    """Raise ValueError for a call's own compression unless it is the one that the cache was filled under.

    Args:
        cache: filled.
        given: compression of the call, if any.
        configured: the model's own, for a cache that does not say what it was filled under.
    """
    if given is None:
        return
    filled = configured if cache.filled_under is None else cache.filled_under
    if given != filled:
        raise ValueError(
            "compression cannot be changed behind a filled cache, whose layers have chosen their visual tokens; give "
            "the whole conversation without past_key_values, or leave compression out."
        )
