"""LLaVA's module and its function for opening a checkpoint; `llava.checkpoints.opening` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava.checkpoints.opening import open_model
from llava.compression.config import CompressionConfig


def load_pretrained_model(
    model_path: str,
    model_base: str | None = None,
    model_name: str | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    compression: CompressionConfig | str | Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[PreTrainedTokenizerBase, Any, Any, int]:
    """Open a model, as LLaVA's users call it; see `llava.checkpoints.opening.open_model`.

    Args:
        model_path, model_base, model_name: `path`, `base` and `name` there.
        load_8bit, load_4bit: `bits` there.
        device_map, device, compression, kwargs: as there.
        use_flash_attn: use FlashAttention-2 instead of PyTorch's SDPA.

    Returns:
        tokenizer, model in eval mode, image processor (None without a vision tower), context length in tokens.

    Raises:
        ValueError: as `open_model`, or if both 4 and 8 bits are asked for.
    """
    if load_8bit and load_4bit:
        raise ValueError("load_8bit and load_4bit are both set; choose one.")
    if use_flash_attn:
        kwargs["attn_implementation"] = "flash_attention_2"
    opened = open_model(
        model_path,
        model_base,
        name=model_name,
        bits=4 if load_4bit else 8 if load_8bit else 16,
        device=device,
        device_map=device_map,
        compression=compression,
        **kwargs,
    )
    return opened.tokenizer, opened.model, opened.preprocessor, opened.context
