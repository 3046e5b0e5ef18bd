"""Attention over the rows of a packed layout, registered with transformers as the implementation `sdpa_varlen`.

Called without `lengths` it is transformers' `sdpa`, call for call. With them, each row of the stream attends to itself
alone: by flash-attn's variable-length kernel where that is installed, by PyTorch's (`torch.nn.attention.varlen`) where
the device can run it, and by one causal `scaled_dot_product_attention` a row otherwise. Decoders that run under
`flash_attention_2` or `_3` need nothing of this: transformers hands them the same borders under the names it has for
them. Shapes: S tokens of all rows, H query heads, G key heads, d head width.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available
from transformers.utils.generic import is_flash_attention_requested

from llava.compression.layout import TokenLayout

VARLEN = "sdpa_varlen"
_WIDEST_HEAD = 256  # of the flash kernels
_NOT_HERE = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments of transformers' attention functions that would change what a packed row attends to."""


def let_pack(config: Any) -> None:
    """Let a decoder that attends by transformers' `sdpa` take packed rows, too; other implementations stay.

    Args:
        config: configuration of the decoder.
    """
    if config._attn_implementation == "sdpa":
        config._attn_implementation = VARLEN


def why_not_packed(config: Any) -> str | None:
    """Why the attention of a decoder cannot take packed rows, as the middle of a sentence; None if it can.

    Args:
        config: configuration of the decoder.
    """
    name = config._attn_implementation
    if name != VARLEN and not is_flash_attention_requested(config):
        return f"the decoder attends by {name!r}, where rows must be padded (accepted are sdpa and flash_attention_2)"
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or getattr(config, "sliding_window", None) is not None:
        return "the decoder has layers with a sliding window, where rows must be padded"
    return None


def borders_of(layout: TokenLayout) -> dict[str, Any]:
    """What attention functions need to know of a packed layout, by transformers' names; the device is not asked."""
    ends = torch.tensor([0, *accumulate(layout.lengths)], dtype=torch.int32)  # [B + 1]
    ends = ends.to(layout.valid.device, non_blocking=True)
    longest = max(layout.lengths)
    lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return {"lengths": layout.lengths, **lengths}


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row of a stream to itself; without `lengths`, transformers' `sdpa`.

    Args:
        module: attention module.
        query: [1, H, S, d].
        key, value: [1, G, S, d].
        attention_mask: None for a stream.
        dropout: share of the weights that are dropped.
        scaling: factor of the dot product.
        lengths: tokens of each row, on the host; they add up to S.
        kwargs: what transformers hands on, among it what `borders_of` says.

    Returns:
        [1, S, H, d], and None for the weights.

    Raises:
        ValueError: for a mask, or for an argument that asks for another attention.
    """
    if lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    asked = [name for name in _NOT_HERE if kwargs.get(name) is not None]
    if attention_mask is not None or asked:
        raise ValueError(
            f"{asked[0] if asked else 'attention_mask'} is given for packed rows, whose attention is causal and whole; "
            "call the model with packing='off'."
        )
    kernel = None if dropout else _kernel(query)
    if kernel is None:
        return _row_by_row(query, key, value, lengths, dropout, scaling), None
    dtype = _half_precision(query)
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))  # [S, heads, d]
    return kernel(query, key, value, kwargs["cu_seq_lens_q"], kwargs["max_length_q"], scaling)[None], None


def _row_by_row(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], dropout: float, scaling: float | None
) -> Tensor:
    """[1, S, H, d] by PyTorch's own causal kernel on views of each row; in one call where rows are equally long."""
    attend = functools.partial(
        F.scaled_dot_product_attention,
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    states, rows = (query, key, value), [length for length in lengths if length]
    if len(set(rows)) == 1:
        by_row = (part[0].unflatten(1, (len(rows), rows[0])).transpose(0, 1) for part in states)  # [B, heads, L, d]
        return attend(*by_row).transpose(1, 2).flatten(0, 1)[None]  # [1, B * L, H, d]
    parts = zip(*(part.split(rows, dim=2) for part in states), strict=True)  # for each row [1, heads, its L, d]
    return torch.cat([attend(*part).transpose(1, 2) for part in parts], dim=1)


def _half_precision(query: Tensor) -> torch.dtype:
    """The data type that attention runs in: autocast's where it is on, as for PyTorch's own functions."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float | None], Tensor]
"""From queries [S, H, d], keys and values [S, G, d], borders int32 [B + 1], longest row and scaling to [S, H, d]."""


def _kernel(query: Tensor) -> Kernel | None:
    """A variable-length kernel for queries [1, H, S, d]; None where the device or the data type has none."""
    if not query.is_cuda or query.shape[-1] > _WIDEST_HEAD:
        return None
    return _kernel_of(query.device) if _half_precision(query) in (torch.float16, torch.bfloat16) else None


@functools.cache
def _kernel_of(device: torch.device) -> Kernel | None:
    if is_flash_attn_2_available():
        return _flash_attn
    too_old = torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0)
    return None if too_old else _of_torch()


def _flash_attn(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    found: Tensor = flash_attn_varlen_func(
        query, key, value, ends, ends, longest, longest, softmax_scale=scaling, causal=True
    )
    return found


@functools.cache
def _of_torch() -> Kernel | None:
    """PyTorch's kernel, in releases where it takes a scale and grouped queries; not on ROCm, where it is untried."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if torch.version.hip is not None or not {"scale", "enable_gqa", "window_size"} <= set(
        inspect.signature(varlen_attn).parameters
    ):
        return None

    def attend(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, longest: int, scaling: float | None) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        found: Any = varlen_attn(
            query, key, value, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
        )
        return found

    return attend


AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(VARLEN, sdpa_mask)
