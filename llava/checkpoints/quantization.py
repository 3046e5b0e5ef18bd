"""A language model in 8 or 4 bits by bitsandbytes, with tower, projector and head as they are."""

from __future__ import annotations

from typing import Any

import torch

# Whole paths from the model's root: transformers does not look for a name in the middle of a path.
NEVER_QUANTISED = ("model.vision_tower", "model.mm_projector", "lm_head")


def bitsandbytes_config(
    bits: int, compute_dtype: torch.dtype, double_quant: bool = True, quant_type: str = "nf4"
) -> Any | None:
    """What `from_pretrained` takes as `quantization_config`; None for 16 bits.

    Args:
        bits: 16, 8 or 4.
        compute_dtype: of matrix products, for 4 bits.
        double_quant: quantise the quantisation constants too, for 4 bits.
        quant_type: `nf4` or `fp4`, for 4 bits.
    """
    if bits == 16:
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=list(NEVER_QUANTISED),
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
    )
