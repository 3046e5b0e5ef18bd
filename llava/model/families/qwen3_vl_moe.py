"""Qwen3-VL whose decoder has a mixture of experts in the place of each MLP (30B-A3B, 235B-A22B).

A router sends each token to a few experts, whichever tokens stand beside it, so that merging, dropping and packing
change nothing for those that stay. What is the mixture's own stands in `llava.model.experts`.
"""

from __future__ import annotations

from transformers import Qwen3VLMoeForConditionalGeneration

from llava.model.families.qwen3_vl import Qwen3VLFamily
from llava.model.stock_forward import forward_like


class CompressedQwen3VLMoe(Qwen3VLFamily, Qwen3VLMoeForConditionalGeneration):
    """`Qwen3VLMoeForConditionalGeneration` with both stages inside; see `QwenVLFamily`."""

    stock = Qwen3VLMoeForConditionalGeneration
    forward = forward_like(Qwen3VLMoeForConditionalGeneration)
