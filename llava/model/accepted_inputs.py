"""What a forward may be given, checked before anything is computed: masks, positions, caches, embeddings.

These need to know no model; those that do stand in `llava.model.call_checks`. Each check either
passes or raises a ValueError that says what to change. Shapes: B rows, T positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llava.model.staged_cache import StagedCache

PACKING = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
"""Arguments by which padding-free collators describe where packed sequences begin."""

_IDS = (torch.int64, torch.int32)
_ONE_SEQUENCE_A_ROW = "give each sequence a row of its own, padded, with an attention_mask"


def check_cache(cache: Any) -> None:
    """Raise ValueError unless `past_key_values` is a `StagedCache` or None."""
    if isinstance(cache, StagedCache) and cache.get_seq_length() and not cache.stages:
        raise ValueError(
            "past_key_values was filled without a compression, and cannot go on under one; give the whole conversation "
            "without past_key_values."
        )
    if cache is None or isinstance(cache, StagedCache):
        return
    raise ValueError(
        f"past_key_values is a {type(cache).__name__}; it must be a StagedCache, or left out (the output's "
        "past_key_values holds the cache): layers that drop visual tokens cache different numbers of them. Prefix "
        "tuning passes such a cache and does not work here: use LoRA or another adapter of weights."
    )


def check_tokens(name: str, tokens: Any) -> None:
    """Raise ValueError unless a prompt is a tensor of rows with tokens: ids [B, T], or embeddings [B, T, D]."""
    embedded = name == "inputs_embeds"
    expected = ("rows", "tokens", "width") if embedded else ("rows", "tokens")
    fits = isinstance(tokens, Tensor) and tokens.dim() == len(expected) and min(tokens.shape[:2]) > 0
    if not fits:
        shape = f"has shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else f"is a {type(tokens).__name__}"
        raise ValueError(f"{name} {shape}; give a tensor [{', '.join(expected)}] with at least one of each.")
    if not (tokens.is_floating_point() if embedded else tokens.dtype in _IDS):
        kind = "floating-point numbers" if embedded else "whole numbers (torch.long)"
        raise ValueError(f"{name} holds {tokens.dtype}; give {kind}.")


def check_no_media(given: Mapping[str, Any], advice: str) -> None:
    """Raise ValueError for pictures, videos or features of them under a name that nothing reads.

    Args:
        given: arguments that the signature does not know, by name.
        advice: what to do instead.
    """
    for name, value in given.items():
        if _MEDIA.search(name) and _holds_media(value):
            raise ValueError(f"{name} is not read by this model; {advice}.")


_MEDIA = re.compile("image|pixel|video|audio|picture|features$")


def _holds_media(value: Any) -> bool:
    """Whether a value may be media: not flags and numbers, nor tables of integers such as sizes."""
    if isinstance(value, Mapping):
        return any(map(_holds_media, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_holds_media, value))
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.dim() > 2
    return not (value is None or isinstance(value, (bool, int, float)))


def check_normalised(name: str, pixels: Tensor, advice: str) -> None:
    """Raise ValueError for pixels that are no floating-point numbers.

    Args:
        name: what they are called in the message.
        pixels: in any shape.
        advice: what to do instead.
    """
    if not pixels.is_floating_point():
        raise ValueError(
            f"{name} holds {str(pixels.dtype).removeprefix('torch.')}, which no processor has scaled and normalised; "
            f"{advice}."
        )


def is_attention_matrix(attention_mask: Any) -> bool:
    """Whether a mask is a whole attention matrix [B, heads, T, T] rather than padding."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 4


def check_padding_mask(attention_mask: Any, rows: int, columns: int, behind_cache: bool = False) -> None:
    """Raise ValueError unless a mask is None or [B, T] with 1 on tokens and 0 on padding.

    Args:
        attention_mask: what was given.
        rows, columns: shape of the tokens it is for.
        behind_cache: tokens are new ones behind a filled cache, and the mask may also cover what came before.
    """
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"attention_mask is a {type(attention_mask).__name__}; give a tensor [{rows}, {columns}] with 1 on tokens "
            "and 0 on padding."
        )
    shape = tuple(attention_mask.shape)
    if len(shape) == 4:
        raise ValueError(
            f"attention_mask has 4 dimensions, {shape}: a whole attention matrix, which cannot be kept when images "
            f"change the number of tokens and layers drop some; give padding alone, [{rows}, {columns}] with 1 on "
            "tokens."
        )
    fits = len(shape) == 2 and shape[0] == rows and (shape[1] == columns or (behind_cache and shape[1] > columns))
    if not fits:
        more = " or more columns, of which the last count" if behind_cache else ""
        raise ValueError(
            f"attention_mask has shape {shape}, but the tokens have shape {(rows, columns)}; give [{rows}, {columns}]"
            f"{more}, with 1 on tokens and 0 on padding."
        )
    if attention_mask.dtype != torch.bool and not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise ValueError(
            f"attention_mask holds values from {attention_mask.min().item():g} to {attention_mask.max().item():g}; it "
            "must hold 1 on tokens and 0 on padding. Numbered packed sequences and additive masks are not read here: "
            f"{_ONE_SEQUENCE_A_ROW}."
        )


def position_steps(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """How far each token's position [B, T] is ahead of the one before it, int64 [B, T - 1]; 1 at padding."""
    steps = position_ids.diff(dim=-1)
    if attention_mask is None:
        return steps
    valid = attention_mask.bool()
    return steps.masked_fill(~(valid[:, 1:] & valid[:, :-1]), 1)


def check_position_shape(position_ids: Any, rows: int, columns: int, axes: tuple[int, ...] = ()) -> None:
    """Raise ValueError unless positions are None, [B, T], [1, T], or have as many axes in front as are accepted."""
    if position_ids is None:
        return
    if not isinstance(position_ids, Tensor):
        raise ValueError(f"position_ids is a {type(position_ids).__name__}; give a tensor [{rows}, {columns}].")
    shape = tuple(position_ids.shape)
    expected = (rows, columns)
    if shape[-1:] == (columns,) and (
        (len(shape) == 2 and shape[0] in (1, rows)) or (len(shape) == 3 and shape[0] in axes and shape[1] == rows)
    ):
        return
    more = "".join(f" or [{count}, {rows}, {columns}]" for count in axes)
    raise ValueError(
        f"position_ids has shape {shape}, but the tokens have shape {expected}; give {list(expected)}{more}."
    )


def check_counting(position_ids: Tensor | None, attention_mask: Tensor | None) -> None:
    """Raise ValueError for positions [B, T] that do not count each row's tokens one by one: nothing would heed them."""
    if position_ids is None or bool((position_steps(position_ids, attention_mask) == 1).all()):
        return
    raise ValueError(
        "position_ids do not count the tokens of each row one by one. Where images are shown or tokens are generated, "
        "the model numbers its tokens itself; leave position_ids out, and if they mark packed sequences, "
        f"{_ONE_SEQUENCE_A_ROW}."
    )


def starts_anew(position_ids: Tensor | None, attention_mask: Tensor | None) -> bool:
    """Whether positions [B, T] go back anywhere in a row, as where a packed sequence begins."""
    return position_ids is not None and bool((position_steps(position_ids, attention_mask) < 1).any())


def stands_apart(position_ids: Tensor | None, attention_mask: Any, caching: bool) -> bool:
    """Whether text [B, T] wants an attention of its own: packed sequences, or a 4-D mask.

    As in transformers, a jump forward begins a sequence only where there is neither a mask nor a cache.
    """
    if is_attention_matrix(attention_mask):
        return True
    if position_ids is None or position_ids.shape[-1] < 2:
        return False
    if attention_mask is None and not caching:
        return bool((position_ids.diff(dim=-1) != 1).any())
    return starts_anew(position_ids, attention_mask)


def separated(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Packed positions [B, T] by which transformers separates sequences without a mask: each pad stands alone."""
    return position_ids if attention_mask is None else position_ids.masked_fill(~attention_mask.bool(), -2)


def check_packing(given: Mapping[str, Any], packed: bool) -> None:
    """Raise ValueError where only a collator's packing arguments, but no positions, say that sequences are packed."""
    borders = [given[name] for name in PACKING[:2] if given.get(name) is not None]
    several = any(len(border) > 2 for border in borders)
    numbers = given.get("seq_idx")
    several = several or (numbers is not None and bool((numbers != numbers[..., :1]).any()))
    if several and not packed:
        raise ValueError(
            "cu_seq_lens_q, cu_seq_lens_k or seq_idx describe several packed sequences, but position_ids do not start "
            f"anew where they begin; give such position_ids, or {_ONE_SEQUENCE_A_ROW}."
        )


def check_matrix(attention_mask: Tensor, rows: int, columns: int) -> None:
    """Raise ValueError unless a 4-D mask fits tokens [B, T] and is boolean or added to the scores."""
    shape = tuple(attention_mask.shape)
    if shape[0] not in (1, rows) or shape[2:] != (columns, columns):
        raise ValueError(
            f"attention_mask has shape {shape}, but the tokens have shape {(rows, columns)}; give "
            f"[{rows}, 1, {columns}, {columns}], or [{rows}, {columns}] with 1 on tokens and 0 on padding."
        )
    if attention_mask.dtype != torch.bool and not attention_mask.is_floating_point():
        raise ValueError(
            f"attention_mask has 4 dimensions and holds {attention_mask.dtype}; give booleans (True: may attend) or "
            "floating-point numbers that are added to the scores."
        )


def refuse_apart(what: str) -> ValueError:
    """The error for packed sequences or a 4-D mask beside something that cannot go with them."""
    return ValueError(
        f"Either several sequences are packed into a row (position_ids start anew within it) or attention_mask has 4 "
        f"dimensions, and that is given with {what}. Both work for text alone, without a cache; "
        f"{_ONE_SEQUENCE_A_ROW}."
    )


def check_causal(given: Mapping[str, Any]) -> None:
    """Raise ValueError for `is_causal=False`, which the decoder would not heed."""
    if given.get("is_causal") is False:
        raise ValueError("is_causal is False, but the decoder is causal; leave it out.")


def without_packing(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without those by which collators describe packed sequences."""
    return {name: value for name, value in given.items() if name not in PACKING}


def refuse_soft_prompt() -> ValueError:
    """The error for embeddings that stand beside a prompt that is already prepared, as peft's soft prompts do."""
    return ValueError(
        "inputs_embeds came beside a prompt whose embeddings are already prepared, as peft's prompt tuning and "
        "p-tuning do while generating. Soft prompts do not work here: use LoRA or another adapter of weights."
    )


def refuse_soft_prompts_of_peft(model: Any) -> None:
    """Raise ValueError where peft is about to put a soft prompt before one that `generate` has prepared."""
    preparing = vars(model).get("prepare_inputs_for_generation")
    adapter = getattr(getattr(preparing, "__self__", None), "active_peft_config", None)
    if adapter is not None and adapter.is_prompt_learning:
        raise ValueError(
            f"{adapter.peft_type.value} of peft puts a soft prompt before a prompt that generate has prepared, where "
            "nothing would heed it. Soft prompts do not work here: use LoRA or another adapter of weights."
        )
